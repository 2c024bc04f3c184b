"""What each calibrate process saw: RUN/attempts/<start>-<host>-<pid>.jsonl, one line per outcome.

For `status` and the scaling model. Shards alone say what is done, and hold no times, so that they stay the
same bit for bit. A file has one writer, so appending needs no lock; its last line may be torn when the writer
was killed.
"""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from hpcmpq.errors import UserError
from hpcmpq.plan import Plan, UnitOutcome
from hpcmpq.store.run_dir import MEASURING, RunDir


@dataclass(frozen=True)
class Attempt:
    """One outcome of one unit.

    Attributes:
        unit_id: The unit.
        seconds: Wall time of the measurement; 0 if it failed.
        finished: Unix time.
        error: None, or why it failed.
        final: False when the same process tried it again.
        node: Where it was tried; of earlier versions only if it failed, else an empty string.
    """

    unit_id: str
    seconds: float
    finished: float
    error: str | None
    final: bool
    node: str = ""


_NUMBER = int, float
_PROCESS: dict[str, tuple[type, ...]] = {"host": (str,), "job_id": (str,), "started": _NUMBER}
_ATTEMPT: dict[str, tuple[type, ...]] = {
    "unit_id": (str,),
    "seconds": _NUMBER,
    "finished": _NUMBER,
    "error": (str, type(None)),
    "final": (bool,),
    "node": (str,),
}
"""Fields of a line and their types; `node` is missing in older files."""


@dataclass(frozen=True)
class CalibrateProcess:
    """One `hpcmpq calibrate` and what it saw.

    Attributes:
        host: Where it ran.
        job_id: Its job of Slurm or PBS, or an empty string.
        started: Unix time.
        attempts: Outcomes, in order of time.
    """

    host: str
    job_id: str
    started: float
    attempts: tuple[Attempt, ...]


@contextmanager
def recording(run: RunDir, host: str = "") -> Iterator[Callable[[UnitOutcome], None]]:
    """Yields the function that appends an outcome to this process's file.

    Args:
        run: The run directory.
        host: This machine's name, if another than it calls itself by.

    Raises:
        UserError: If the file cannot be written.
    """
    host, started = host or socket.gethostname(), time.time()
    path = run.attempts_path / f"{started:.3f}-{host}-{os.getpid()}.jsonl"

    def append(values: dict[str, object]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; make room or permission there "
                "and run the same command again"
            ) from error

    def record(outcome: UnitOutcome) -> None:
        told = outcome.seconds, time.time(), outcome.error, outcome.final, outcome.node
        append(dataclasses.asdict(Attempt(outcome.unit.id, *told)))

    job_id = os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID", "")
    append({"host": host, "job_id": job_id, "started": started})
    yield record


def read_processes(run: RunDir) -> list[CalibrateProcess]:
    """What every calibrate process of a run saw, in order of their starts; torn and damaged lines do not count.

    Neither do files that are none, or are gone: a stage that is done removes its own while others look.
    """
    processes = []
    for path in sorted(run.attempts_path.glob("*.jsonl")):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, IsADirectoryError):
            continue
        first, *others = [_fields(line) for line in text.split("\n")[:-1]] or [{}]
        if _fits(first, _PROCESS):
            full = ({"node": "", **fields} for fields in others)
            attempts = tuple(Attempt(**fields) for fields in full if _fits(fields, _ATTEMPT))
            processes.append(CalibrateProcess(**first, attempts=attempts))
    return processes


def read_processes_of(plan: Plan, run: RunDir) -> list[CalibrateProcess]:
    """As `read_processes`, the attempts at a plan's units alone, and the processes that made some."""
    known = {unit.id for unit in plan.units}
    found = [
        replace(process, attempts=tuple(each for each in process.attempts if each.unit_id in known))
        for process in read_processes(run)
    ]
    return [process for process in found if process.attempts]


def read_all_processes(run: RunDir) -> dict[str, list[CalibrateProcess]]:
    """{whose work units: what every process that ran them saw}, of all in `MEASURING`."""
    return {each: read_processes(replace(run, measuring=each)) for each in MEASURING}


def unit_seconds(processes: Iterable[CalibrateProcess]) -> dict[str, float]:
    """Measured wall time of each unit that succeeded.

    A process that finds a unit done by another reports almost no time for it, so the longest time counts.
    """
    seconds: dict[str, float] = {}
    for process in processes:
        for attempt in process.attempts:
            if attempt.error is None:
                seconds[attempt.unit_id] = max(attempt.seconds, seconds.get(attempt.unit_id, 0.0))
    return seconds


def failures(processes: Iterable[CalibrateProcess]) -> dict[str, str]:
    """The error of each unit whose latest attempt failed."""
    latest: dict[str, Attempt] = {}
    for process in processes:
        for attempt in process.attempts:
            if attempt.unit_id not in latest or latest[attempt.unit_id].finished <= attempt.finished:
                latest[attempt.unit_id] = attempt
    return {unit_id: attempt.error for unit_id, attempt in latest.items() if attempt.error is not None}


def _fields(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _fits(fields: dict[str, Any], kinds: dict[str, tuple[type, ...]]) -> bool:
    return fields.keys() == kinds.keys() and all(isinstance(fields[name], kinds[name]) for name in kinds)
