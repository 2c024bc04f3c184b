"""Taking the steps of an attempt wherever an executor runs them, by one process or several that share a run directory.

Of several each has its own units among those that are to be done next. It waits for the others' as long as its own take
a few times over; whoever is late then is helped, and not waited for again until something of its comes in time.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from zlib import crc32

from hpcmpq.errors import IncompleteCalibration
from hpcmpq.executors import Executor, Worker
from hpcmpq.plan import UnitOutcome
from hpcmpq.rounding.attempt import LOOK_S, Steps, is_seen_in_time

log = logging.getLogger(__name__)

PATIENCE, LEAST_PATIENCE_S = 3.0, 5.0
"""Others are waited for this many times as long as the process's own slowest units took, or so many seconds."""


class Overtaken(Exception):
    """Another process has ended the attempt."""


def never() -> bool:
    """Of what is needed whatever others have done."""
    return False


@dataclass
class Taking:
    """What takes steps.

    Attributes:
        steps: Their shards.
        recipe: Makes a worker that takes one.
        executor: Where units run.
        record: Keeps what became of units.
        is_over: Whether another process has ended the attempt.
        part: (i, n): of n processes that share the run directory this is number i.
    """

    steps: Steps
    recipe: Callable[[], Worker]
    executor: Executor
    record: Callable[[UnitOutcome], None]
    is_over: Callable[[], bool]
    part: tuple[int, int] = (0, 1)
    _late: set[int] = field(default_factory=set)
    _slowest_s: float = 0.0

    def take(self, steps: Sequence[str], is_done: Callable[[], bool] = never) -> None:
        """Take steps that do not need one another, as far as they are not done.

        Args:
            steps: By name.
            is_done: Whether what they are for is there, so that nobody needs their shards any more.
        """
        index, count = self.part
        # Not always the same one's, where there are fewer steps than processes.
        first = crc32(steps[0].encode())
        owners = {step: (first + k) % count for k, step in enumerate(steps)}
        taken = {step for step, owner in owners.items() if owner == index}
        start = time.monotonic()
        self._run([step for step in steps if step in taken], is_done)
        self._slowest_s = max(self._slowest_s, time.monotonic() - start)
        until = time.monotonic() + max(LEAST_PATIENCE_S, PATIENCE * self._slowest_s)
        while left := [] if is_done() else [step for step in steps if not self.steps.is_there(step)]:
            if self.is_over():
                raise Overtaken
            if time.monotonic() < until and not self._late.issuperset(owners[step] for step in left):
                time.sleep(LOOK_S)
                continue
            self._late |= {owners[step] for step in left}
            turn = index % len(left)  # who helps begins elsewhere than others who do
            self._run([*left[turn:], *left[:turn]], is_done)
            taken |= set(left)
        self._late -= {owner for step, owner in owners.items() if step not in taken}

    def _run(self, steps: Sequence[str], is_done: Callable[[], bool]) -> None:
        """Run the units of steps here, as far as they are not done."""
        if self.is_over():
            raise Overtaken
        units = [self.steps.unit(step) for step in steps if not self.steps.is_there(step)]
        if not units or is_done():
            return
        failed: list[UnitOutcome] = []
        made: list[str] = []
        with closing(self.executor.run(self.recipe, units, keep=True)) as outcomes:
            for outcome in outcomes:
                self.record(outcome)
                if outcome.error is None:
                    made.append(outcome.unit.id.partition("-")[2])
                else:
                    again = "" if outcome.final else "; trying again"
                    log.warning("unit %s: %s%s", outcome.unit.id, outcome.error, again)
                    failed += [outcome] if outcome.final else []
        if is_done():
            return
        if self.is_over():
            raise Overtaken
        is_seen_in_time(lambda: is_done() or all(map(self.steps.is_there, made)), self.steps.run.shards_path)
        missing = [] if is_done() else [step for step in steps if not self.steps.is_there(step)]
        if missing:
            error = failed[0].error if failed else "another process has removed what it needs"
            raise IncompleteCalibration(
                f"{len(missing)} of {len(steps)} units failed, first {self.steps.name}-{missing[0]}: {error}; "
                f"the others are on disk, run `{self.steps.run.command}` again"
            )
