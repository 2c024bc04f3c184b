"""The bash blocks of pages, run as they stand, one after the other."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

RunPage = Callable[[str, Path], dict[str, str]]
"""`run_blocks` with its script."""


def blocks(page: str) -> list[str]:
    """The fenced bash blocks of a page, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def run_blocks(page: str, directory: Path, hpcmpq: str) -> dict[str, str]:
    """{block: what it printed} of a page of `docs`, run in a directory; `hpcmpq` is a script for that command.

    A block that fails fails the test, with what it printed.
    """
    bin_ = directory / "bin"
    bin_.mkdir()
    for name, script in {"hpcmpq": hpcmpq, "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'}.items():
        (bin_ / name).write_text(script)
        (bin_ / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }
    printed = {}
    for block in blocks((ROOT / "docs" / page).read_text()):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=directory, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed[block] = done.stdout + done.stderr
    return printed
