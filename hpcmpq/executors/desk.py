"""Where workers get their units: the backlog of one run, or those of several, a worker's own run first.

Whoever has an executor that can serve several runs (`SEVERAL`) gives it a `SharedDesk` and tells that of every outcome:

    with closing(pool.hand_out(desk)) as outcomes:
        for backlog, outcome in outcomes:
            desk.seen(backlog, outcome)
"""

import logging
import pickle
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hpcmpq.errors import Infeasible, UserError, in_words
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.batches import Batches, UnitBatch
from hpcmpq.plan import UnitOutcome, WorkUnit

log = logging.getLogger(__name__)

SEVERAL = ("local", "mpi")
"""Executors whose pools are `DeskPool`s."""


class Desk(Protocol):
    """Hands out units to workers that ask."""

    def take(self, held: Backlog | None) -> tuple[Backlog, WorkUnit] | None:
        """A unit and the backlog that it is from; None where none waits.

        Args:
            held: What the worker's last unit was from: it has what that one's run needs.
        """
        ...

    def refuse(self, backlog: Backlog, error: UserError) -> None:
        """Hear of what would stop every unit of a backlog; raises it where there is no other run."""
        ...


class DeskPool(Protocol):
    """An executor whose workers go from run to run."""

    num_workers: int

    def hand_out(self, desk: Desk, keep: bool = False) -> Generator[tuple[Backlog, UnitOutcome], None, None]:
        """Hand out units until none waits and none is measured; yield each outcome with the backlog of its unit.

        Args:
            desk: Where units wait. While an outcome is looked at more may come.
            keep: Workers without a unit wait for more.
        """
        ...


@dataclass(frozen=True)
class LoneDesk:
    """The desk of one run."""

    backlog: Backlog

    def take(self, held: Backlog | None) -> tuple[Backlog, WorkUnit] | None:
        """See `Desk.take`."""
        return (self.backlog, self.backlog.take()) if self.backlog else None

    def refuse(self, backlog: Backlog, error: UserError) -> None:
        """See `Desk.refuse`."""
        raise error


@dataclass
class _Lane:
    """A run: its batches, the one that is being measured, and how many of its units are not over."""

    number: int
    batches: Batches[Any]
    batch: UnitBatch | None = None
    backlog: Backlog | None = None
    num_left: int = 0

    @property
    def share(self) -> float:
        """Units that are not over for each of its workers, were there one more."""
        return self.num_left / (1 + self.num_left - len(self.backlog or ()))


class SharedDesk:
    """The desk of several runs: a worker stays with its run while a unit of that waits, then goes to another.

    Workers that ask one after the other, such as those of a node, begin with the same run, until that has its share. A
    run that fails leaves its workers to the others.
    """

    def __init__(
        self,
        runs: Sequence[Batches[Any]],
        on_error: Callable[[int, Exception], None],
        num_workers: int,
        *,
        at_once: bool,
    ) -> None:
        """A desk where workers are about to ask.

        Args:
            runs: What each run wants measured.
            on_error: Called with the number of a run and why it is over, if not because it is done.
            num_workers: How many workers there are.
            at_once: Begin all runs now, side by side; else each, in their order, when no unit of those before it waits.
        """
        self._on_error, self._num_workers = on_error, num_workers
        self._lanes = [_Lane(number, batches) for number, batches in enumerate(runs)]
        self._not_begun = deque(self._lanes)
        while at_once and self._not_begun:
            self._advance(self._not_begun.popleft())

    def take(self, held: Backlog | None) -> tuple[Backlog, WorkUnit] | None:
        """See `Desk.take`."""
        while not (waiting := [lane for lane in self._lanes if lane.backlog]) and self._not_begun:
            self._advance(self._not_begun.popleft())
        own = [lane for lane in waiting if lane.backlog is held]
        mean = sum(lane.num_left for lane in self._lanes) / self._num_workers
        behind = [lane for lane in waiting if lane.share >= mean][:1]
        lane = max(own or behind or waiting, key=lambda lane: lane.share, default=None)
        return None if lane is None or lane.backlog is None else (lane.backlog, lane.backlog.take())

    def refuse(self, backlog: Backlog, error: UserError) -> None:
        """See `Desk.refuse`; the run is over, and what its other workers are busy with counts for nothing."""
        for lane in self._of(backlog):
            lane.batch, lane.backlog, lane.num_left = None, None, 0
            lane.batches.close()
            self._on_error(lane.number, error)

    def seen(self, backlog: Backlog, outcome: UnitOutcome) -> None:
        """Pass an outcome on to its run; after the last one of a batch the run's next batch waits here."""
        for lane in self._of(backlog):
            assert lane.batch is not None
            try:
                lane.batch.seen(outcome)
            except UserError as error:
                self.refuse(backlog, error)
                return
            lane.num_left -= outcome.error is None or outcome.final
            if not lane.num_left:
                self._advance(lane)

    def _of(self, backlog: Backlog) -> list[_Lane]:
        """The run that a backlog is of; none if that is over."""
        return [lane for lane in self._lanes if lane.backlog is backlog]

    def _advance(self, lane: _Lane) -> None:
        lane.batch, lane.backlog, lane.num_left = None, None, 0
        try:
            lane.batch = next(lane.batches)
        except StopIteration:
            return
        except Exception as error:
            known = in_words(error)
            if not isinstance(known, UserError | Infeasible):
                raise
            self._on_error(lane.number, known)
            return
        lane.backlog = Backlog(lane.batch.units, pickle.dumps(lane.batch.make_worker))
        lane.num_left = len(lane.batch.units)
