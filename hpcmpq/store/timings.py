"""Wall times of stages, RUN/timings.json, from one file per stage, so that stages may run at once without a lock.

Every stage writes RUN/timings/<stage>.json, then all of them together into `timings.json` until that holds what
the files hold: whoever writes last has seen every stage that ended before. Each says of which plan it is the time; of
earlier versions none does, and is taken to be this one's.
"""

from pathlib import Path
from typing import Any

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.run_dir import RunDir


def keep_timing(run: RunDir, stage: str, seconds: float, finished: str) -> None:
    """Keep the wall time of a stage beside those of the others.

    Raises:
        UserError: If the files cannot be written.
    """
    planned = _fingerprint(run)
    entry = {
        "seconds": seconds,
        "finished": finished,
        **({} if planned is None else {"fingerprint": planned}),
    }
    write_artefact(run.file("timings") / f"{stage}.json", entry)
    while (timings := read_timings(run)) != _together(run):
        write_artefact(run.file("timings.json"), timings)


def read_timings(run: RunDir) -> dict[str, Any]:
    """{stage: {seconds, finished, fingerprint}}; what is missing, damaged or another plan's is left out, as only people
    read it.
    """
    found, planned = _together(run), _fingerprint(run)
    for path in sorted(run.file("timings").glob("*.json")):
        own = _read(path)
        if _is_time(own) and _is_of(own, planned):
            found[path.stem] = own
    return {stage: entry for stage, entry in found.items() if _is_time(entry) and _is_of(entry, planned)}


def _fingerprint(run: RunDir) -> str | None:
    """Of the plan; None where there is none, or a damaged one."""
    try:
        found: str = read_json(run.plan_path, "hpcmpq plan")["fingerprint"]
        return found
    except UserError:
        return None


def _is_of(entry: dict[str, Any], planned: str | None) -> bool:
    return planned is None or entry.get("fingerprint", planned) == planned


def _is_time(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float)


def _together(run: RunDir) -> dict[str, Any]:
    return _read(run.file("timings.json"))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path, "hpcmpq run")) if path.exists() else {}
    except DamagedFile:
        return {}
