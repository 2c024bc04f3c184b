"""Executors: run work units anywhere, yield outcomes as they finish; results stay on disk.

To add one: write a module here with a context manager `open_pool(num_workers)` that yields an object with the
`run` method below, and one line in `EXECUTORS`. `tests/contracts/test_executors.py` must pass: same shards
as one local process bit for bit, a raising unit does not end the run, a killed worker loses only its unit.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from hpcmpq.errors import UserError
from hpcmpq.plan import UnitOutcome, WorkUnit
from hpcmpq.tables import look_up, named_by

EXECUTORS = {
    "local": "hpcmpq.executors.local_pool:open_pool",
    "mpi": "hpcmpq.executors.mpi_pool:open_pool",
    "ray": "hpcmpq.executors.ray_pool:open_pool",
}

MAX_ATTEMPTS = 3
"""Times a unit is tried before the run goes on without it and reports it."""

THREADS_PER_WORKER = 1
"""Fixed, so that a unit's numbers do not depend on how many workers there are."""

Worker = Callable[[WorkUnit], None]
"""Built once per process; measures a unit and writes its shard."""


class Executor(Protocol):
    """Anything that runs units."""

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """Hand out every unit, in the order given; yield an outcome per attempt.

        Close the iterator (`contextlib.closing`) to abandon the units in flight.

        Args:
            make_worker: Picklable by reference, since it is called in other processes on other nodes.
            units: What to run, those first that take longest, so that the last ones are short.
            keep: Workers may stay for the next run, if its `make_worker` is the same; another run ends them, and so
                does the end of the executor.

        Raises:
            UserError: If no worker can start, or a unit finds what would stop all of them, such as a full
                disk.
        """
        ...


def open_executor(name: str, num_workers: int = 0) -> AbstractContextManager[Executor | None]:
    """The executor called `name` in `EXECUTORS`; what it started is stopped when the block ends.

    Args:
        name: A key of `EXECUTORS`.
        num_workers: At most this many workers; 0 takes all that the machine or cluster offers.

    Returns:
        A context manager that yields the executor, or None in a process that only serves another process's
        executor (an MPI rank other than 0) and has nothing left to do.

    Raises:
        UserError: If the name is unknown, the number is negative, or what the executor needs is missing.
    """
    place = look_up(EXECUTORS, name, "executor")
    if num_workers < 0:
        raise UserError(f"--workers must be 0 (all there are) or more, got {num_workers}")
    return named_by(place)(num_workers)
