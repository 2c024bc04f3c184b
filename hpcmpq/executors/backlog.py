"""Units that wait for a worker, largest first, and how often each was tried."""

import logging
from collections import Counter, deque
from collections.abc import Sequence

from hpcmpq.executors import MAX_ATTEMPTS
from hpcmpq.plan import UnitOutcome, WorkUnit

log = logging.getLogger(__name__)


class Backlog:
    """What is still to be handed out.

    Largest first, so that no long unit starts when everything else is done; a unit that failed goes to the
    end, so that units that kill their workers hold up nothing else.
    """

    def __init__(self, units: Sequence[WorkUnit]) -> None:
        self._waiting = deque(sorted(units, key=lambda unit: unit.size, reverse=True))
        self._attempts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> WorkUnit:
        """The next unit; it counts as waiting no more."""
        return self._waiting.popleft()

    def put_back(self, unit: WorkUnit) -> None:
        """Hand out a unit again that no worker looked at; this is no attempt."""
        self._waiting.appendleft(unit)

    def failed(self, unit: WorkUnit, error: str, traceback: str = "") -> UnitOutcome:
        """The outcome of a failed attempt; the unit waits again unless that was the last one allowed."""
        self._attempts[unit.id] += 1
        final = self._attempts[unit.id] >= MAX_ATTEMPTS
        if not final:
            self._waiting.append(unit)
        elif traceback:
            log.error("%s", traceback.rstrip())
        return UnitOutcome(unit, 0.0, error, final)
