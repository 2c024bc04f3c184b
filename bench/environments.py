"""Virtual environments of packages that cannot share this one, each built once and kept under runs/bench."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcmpq.store.json_files import write_json


def environment(
    folder: Path,
    requirements: Sequence[str],
    without_dependencies: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Path:
    """The Python of an environment, built by uv where there is one, else by venv and pip.

    Args:
        folder: Where it is kept; another list of requirements wants another folder.
        requirements: What pip installs.
        without_dependencies: What it installs after them, alone.
        settings: Further environment variables of what builds packages.

    Raises:
        subprocess.CalledProcessError: If something cannot be installed.
    """
    python, built = folder / "bin" / "python", folder / "built"
    if built.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    if uv := shutil.which("uv"):
        make, install = [uv, "venv", "-q", str(folder)], [uv, "pip", "install", "-q", "-p", str(python)]
    else:
        make, install = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q"],
        )
    variables = {**os.environ, **(settings or {})}
    subprocess.run(make, check=True)
    subprocess.run([*install, *requirements], check=True, env=variables)
    if without_dependencies:
        subprocess.run([*install, "--no-deps", *without_dependencies], check=True, env=variables)
    built.touch()
    return python


def answer(
    python: Path,
    program: Path,
    folder: Path,
    job: Mapping[str, Any],
    settings: Mapping[str, str] | None = None,
) -> Any:
    """What ``PROGRAM folder/job.json ANSWER`` answers, run on one thread and offline; kept in folder/answer.json.

    Args:
        python: Of an environment.
        program: A file.
        folder: Where it runs; what it says goes to folder/log.
        job: What it reads, as JSON.
        settings: Further environment variables.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    unfinished, whole = folder / "unfinished.json", folder / "answer.json"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(settings or {})}
    write_json(folder / "job.json", job)
    with (folder / "log").open("w", encoding="utf-8") as log:
        command = [str(python), str(program), str(folder / "job.json"), str(unfinished)]
        subprocess.run(command, check=True, env=variables, stdout=log, stderr=log, cwd=folder)
    unfinished.rename(whole)
    return json.loads(whole.read_text(encoding="utf-8"))
