"""A pool that serves several runs in the calling process."""

import pickle
from collections.abc import Generator

from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.desk import Desk
from hpcmpq.plan import UnitOutcome


class Here:
    """One worker, which makes what it needs anew for each run."""

    num_workers = 1

    def hand_out(self, desk: Desk, keep: bool = False) -> Generator[tuple[Backlog, UnitOutcome], None, None]:
        held = None
        while (handed := desk.take(held)) is not None:
            if handed[0] is not held:
                held = handed[0]
                work = pickle.loads(held.recipe)()
            work(handed[1])
            yield held, UnitOutcome(handed[1], 0.1)
