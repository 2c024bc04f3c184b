"""Units one after the other in this process: nothing to start, and a model that lies in its memory can be measured.

No entry of `EXECUTORS`: whoever calls from Python may want it, a command has processes to spare.
"""

import pickle
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from hpcmpq.errors import UserError
from hpcmpq.executors import Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.reply import attempt, check_started, outcome_of, start
from hpcmpq.plan import UnitOutcome, WorkUnit


@dataclass
class InProcess:
    """One worker, in the calling process and thread."""

    _kept: tuple[bytes, Worker] | None = None

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`."""
        if not units:
            self._kept = None
            return
        backlog = Backlog(units)
        recipe = pickle.dumps(make_worker) if keep else b""
        if self._kept is None or self._kept[0] != recipe:
            self._kept = None  # frees the old model before the new one is loaded
            worker, reply = start(make_worker)
            check_started(reply)
            assert worker is not None
        else:
            worker = self._kept[1]
        self._kept = (recipe, worker) if keep else None
        while backlog:
            unit = backlog.take()
            reply = attempt(worker, unit)
            yield outcome_of(reply, unit, backlog)
            if reply.broken:
                self._kept = None
            if reply.broken and backlog:
                raise UserError(f"this process has lost its GPU ({reply.error}); start it again to go on")
