"""Wall times of stages, RUN/timings.json, from one file per stage, so that stages may run at once without a lock.

Every stage writes RUN/timings/<stage>.json, then all of them together into `timings.json` until that holds what
the files hold: whoever writes last has seen every stage that ended before.
"""

from pathlib import Path
from typing import Any

from hpcmpq.errors import DamagedFile
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.run_dir import RunDir


def keep_timing(run: RunDir, stage: str, seconds: float, finished: str) -> None:
    """Keep the wall time of a stage beside those of the others.

    Raises:
        UserError: If the files cannot be written.
    """
    write_artefact(run.file("timings") / f"{stage}.json", {"seconds": seconds, "finished": finished})
    while (timings := read_timings(run)) != _together(run):
        write_artefact(run.file("timings.json"), timings)


def read_timings(run: RunDir) -> dict[str, Any]:
    """{stage: {seconds, finished}}; what is missing or damaged is left out, as only people read it."""
    found = _together(run)
    for path in sorted(run.file("timings").glob("*.json")):
        found[path.stem] = _read(path) or found.get(path.stem)
    return {stage: entry for stage, entry in found.items() if _is_time(entry)}


def _is_time(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float)


def _together(run: RunDir) -> dict[str, Any]:
    return _read(run.file("timings.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path, "hpcmpq run")) if path.exists() else {}
    except DamagedFile:
        return {}
