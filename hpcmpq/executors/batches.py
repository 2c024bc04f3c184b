"""What a stage wants measured: a generator of batches, so that one executor can serve several runs."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from hpcmpq.executors import Executor, Worker
from hpcmpq.plan import UnitOutcome, WorkUnit

Result = TypeVar("Result")


@dataclass(frozen=True)
class UnitBatch:
    """Units for workers of one kind; all of them are over before the stage goes on.

    Attributes:
        make_worker: As in `hpcmpq.executors.Executor.run`.
        units: In the order in which they are to be handed out; not empty.
        seen: Called with each outcome.
        keep: As in `hpcmpq.executors.Executor.run`.
    """

    make_worker: Callable[[], Worker]
    units: Sequence[WorkUnit]
    seen: Callable[[UnitOutcome], None]
    keep: bool = False


Batches = Generator[UnitBatch, None, Result]
"""Batches of one run, and what the stage returns after the last."""


def run_batches(batches: Batches[Result], executor: Executor) -> Result:
    """Run a batch after the other; what the generator returns."""
    with closing(batches):
        while True:
            try:
                batch = next(batches)
            except StopIteration as last:
                result: Result = last.value
                return result
            with closing(executor.run(batch.make_worker, batch.units, batch.keep)) as outcomes:
                for outcome in outcomes:
                    batch.seen(outcome)
