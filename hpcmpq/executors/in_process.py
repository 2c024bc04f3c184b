"""Units one after the other in this process: nothing to start, and a model that lies in its memory can be measured.

No entry of `EXECUTORS`: whoever calls from Python may want it, a command has processes to spare.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from hpcmpq.executors import Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.reply import attempt, check_started, outcome_of, start
from hpcmpq.plan import UnitOutcome, WorkUnit


@dataclass(frozen=True)
class InProcess:
    """One worker, in the calling process and thread."""

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit]
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`."""
        backlog = Backlog(units)
        worker, reply = start(make_worker)
        check_started(reply)
        assert worker is not None
        while backlog:
            unit = backlog.take()
            yield outcome_of(attempt(worker, unit), unit, backlog)
