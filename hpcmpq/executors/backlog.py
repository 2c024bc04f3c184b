"""Units that wait for a worker, in the order given, and how often each was tried, and where."""

import logging
from collections import Counter, deque
from collections.abc import Collection, Sequence

from hpcmpq.executors import MAX_ATTEMPTS
from hpcmpq.plan import NODE_ATTEMPTS, UnitOutcome, WorkUnit

log = logging.getLogger(__name__)


class Backlog:
    """What is still to be handed out.

    In the order of `units`, which `hpcmpq.units.starting_from` chooses; a unit that failed goes to the end, so that
    units that kill their workers hold up nothing else.
    """

    def __init__(self, units: Sequence[WorkUnit], recipe: bytes = b"") -> None:
        """A backlog of units that a worker measures which is made by `recipe`, a pickled `make_worker`."""
        self.recipe = recipe
        self.num_deaths = 0
        """Of worker processes in a row that died while they were made."""
        self._waiting = deque(units)
        self._attempts: Counter[str] = Counter()
        self._failures: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> WorkUnit:
        """The next unit; it counts as waiting no more."""
        return self._waiting.popleft()

    def take_for(self, node: str, others: Collection[str]) -> WorkUnit | None:
        """The next unit for a node; None if each of those that wait failed too often there and not on all `others`.

        Args:
            node: Of the worker that asks.
            others: Nodes of the other workers, which may take what this one leaves.
        """
        for unit in self._waiting:
            avoided = self.avoided(unit)
            if node not in avoided or avoided.issuperset(others):
                self._waiting.remove(unit)
                return unit
        return None

    def avoided(self, unit: WorkUnit) -> frozenset[str]:
        """Nodes on which a unit failed `NODE_ATTEMPTS` times."""
        return frozenset(
            node
            for (unit_id, node), count in self._failures.items()
            if unit_id == unit.id and count >= NODE_ATTEMPTS
        )

    def put_back(self, unit: WorkUnit) -> None:
        """Hand out a unit again that no worker looked at; this is no attempt."""
        self._waiting.appendleft(unit)

    def failed(self, unit: WorkUnit, error: str, traceback: str = "", node: str = "") -> UnitOutcome:
        """The outcome of a failed attempt; the unit waits again unless that was the last one allowed."""
        self._attempts[unit.id] += 1
        self._failures[unit.id, node] += 1
        final = self._attempts[unit.id] >= MAX_ATTEMPTS
        if not final:
            self._waiting.append(unit)
        elif traceback:
            log.error("%s", traceback.rstrip())
        return UnitOutcome(unit, 0.0, error, final, node)
