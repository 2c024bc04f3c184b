"""RUN/original, the model in plain numbers or as it was in memory, and what it says that it was made of."""

import json
from pathlib import Path
from typing import Any

from hpcmpq.errors import DamagedFile
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.sums import check_sum, check_sums

SOURCE = "source.json"
"""What the directory was made of: `path`, `form` and `digest`; the form of a model that was in memory is `memory`."""


def read_source(directory: Path) -> dict[str, Any]:
    """What a directory says that it was made of; empty where it does not, or not any more."""
    try:
        values = json.loads((directory / SOURCE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def check_original(run: RunDir) -> None:
    """That the files of RUN/original are what was written, where there are any; earlier versions kept no checksums.

    Raises:
        DamagedFile: If one is not.
    """
    check_sums(run.original_path, _again(run))


def checked_source(run: RunDir) -> dict[str, Any]:
    """What RUN/original was made of; empty where there is none.

    Raises:
        DamagedFile: If the file that says so is not what was written.
    """
    path = run.original_path / SOURCE
    if not path.is_file():
        return {}
    check_sum(path, _again(run))
    if not (values := read_source(run.original_path)):
        raise DamagedFile(f"{path} is damaged (no JSON object); {_again(run)}")
    return values


def _again(run: RunDir) -> str:
    ways = {
        "memory": "give hpcmpq.Run.create the same model again",
        "plan": f"run `hpcmpq plan CONFIG --run-dir {run.path}` again to write it anew",
    }
    form = read_source(run.original_path).get("form")
    if form is None:
        return ", or where the model was in memory ".join((ways["plan"], ways["memory"]))
    return ways["memory" if form == "memory" else "plan"]
