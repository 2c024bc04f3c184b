"""Executors: run work units anywhere, yield outcomes as they finish; results stay on disk.

To add one: write a module here with a class that has the `run` method below, and one line in `EXECUTORS`.
`tests/contracts/test_executors.py` must pass: same shards as one local process bit for bit, a raising unit does
not end the run, a killed worker loses only its unit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from hpcmpq.errors import UserError
from hpcmpq.plan import WorkUnit

EXECUTORS = {
    "local": "hpcmpq.executors.local_pool:LocalPool",
}

MAX_ATTEMPTS = 3
"""Times a unit is tried before the run goes on without it and reports it."""

Worker = Callable[[WorkUnit], None]
"""Built once per process; measures a unit and writes its shard."""


@dataclass(frozen=True)
class UnitOutcome:
    """How one attempt of a unit ended.

    Attributes:
        unit: The unit.
        seconds: Wall time of the measurement, without the start of its process; 0 if it failed.
        error: None when its shard is on disk, else one line that says what happened.
        final: False when the unit will be tried again.
    """

    unit: WorkUnit
    seconds: float
    error: str | None = None
    final: bool = True


class Executor(Protocol):
    """Anything that runs units."""

    def run(self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit]) -> Iterator[UnitOutcome]:
        """Run every unit, in any order; yield an outcome per attempt. `make_worker` must be picklable."""
        ...


def make_executor(name: str, num_workers: int) -> Executor:
    """The executor called `name` in `EXECUTORS`, with `num_workers` processes."""
    if name not in EXECUTORS:
        raise UserError(f"unknown executor {name!r}; known: {', '.join(EXECUTORS)}")
    if num_workers < 1:
        raise UserError(f"--workers must be at least 1, got {num_workers}")
    module, attribute = EXECUTORS[name].split(":")
    return getattr(import_module(module), attribute)(num_workers)
