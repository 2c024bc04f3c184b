"""Asking: an inquiry's missing units run wherever an executor runs them, and its shards become the answer."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hpcmpq.calibrate.neighbourhood import Neighbourhood
from hpcmpq.calibrate.reduce import Reduction, add_shards
from hpcmpq.errors import DamagedFile
from hpcmpq.executors import Executor
from hpcmpq.models.data.splits import Splits
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit, content_hash
from hpcmpq.refine.inquiries import Around, Inquiry, Split, WholeLosses, identity, keep_inquiry, plan_of
from hpcmpq.refine.worker import make_worker
from hpcmpq.store.json_files import placed_artefact, read_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, read_shard_of
from hpcmpq.units import run_missing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking:
    """Measurements of a run, by this process alone or by several that share the run directory.

    Attributes:
        run: Where inquiries and shards are, measuring ``refine``.
        plan: The run's plan.
        splits: Its samples.
        executor: Where units run.
        part: See `hpcmpq.units.run_missing`.
    """

    run: RunDir
    plan: Plan
    splits: Splits
    executor: Executor
    part: tuple[int, int] = (0, 1)

    def around(
        self, choice_G: np.ndarray, options_R: np.ndarray, on_unit: Callable[[int, int], None]
    ) -> Reduction:
        """The quadratic of the loss around a choice, of R options; see `hpcmpq.calibrate.neighbourhood`."""
        assignment = self.plan.space.assignment(choice_G)
        own, shards = self._answer(Around(Neighbourhood(assignment, tuple(options_R.tolist()))), on_unit)
        return add_shards(own, iter(shards))

    def losses(self, split: Split, assignments: Sequence[Mapping[str, str]]) -> list[np.ndarray]:
        """The losses of assignments on every sample of a split, float64 [N] each; an empty one is the original."""
        samples = self.splits.calibration if split == "calibration" else self.splits.held_out
        inquiry = WholeLosses(tuple(map(dict, assignments)), split, len(samples), samples.digest())
        _, shards = self._answer(inquiry, lambda done, total: None)
        return list(np.concatenate([shard.arrays["losses"] for _, shard in shards], axis=1))

    def agreed(self, key: Sequence[Any], make: Callable[[], list[Any]]) -> list[Any]:
        """What the first process that got here made of a key: solvers stop by the clock, and all must go on alike.

        Times are measured again, and what kept a budget on them may not keep it any more.
        """
        times = [] if self.plan.times is None else [self.plan.times]
        name, command = content_hash([identity(self.plan), *times, *key]), f"hpcmpq refine {self.run.path}"
        path = self.run.file(f"refine/{name[:16]}.json")
        try:
            if path.exists():
                found = read_json(path, command)
                if found.get("key", name) == name:
                    return list(found["agreed"])
                path.unlink(missing_ok=True)
        except DamagedFile:
            path.unlink(missing_ok=True)
        return list(placed_artefact(path, {"key": name, "agreed": make()}, command)["agreed"])

    def end(self) -> None:
        """Let go of the workers."""
        for _ in self.executor.run(partial(make_worker, self.run), []):
            raise AssertionError("no unit was given")

    def _answer(
        self, inquiry: Inquiry, on_unit: Callable[[int, int], None]
    ) -> tuple[Plan, list[tuple[WorkUnit, Shard]]]:
        own = plan_of(inquiry, self.plan)
        keep_inquiry(self.run, inquiry, own)

        def on_outcome(outcome: UnitOutcome, done: int, total: int) -> None:
            if outcome.error:
                again = "" if outcome.final else "; trying again"
                log.warning("unit %s: %s%s", outcome.unit, outcome.error, again)
            on_unit(done, total)

        run_missing(self.run, own, make_worker, self.executor, on_outcome, self.part, keep=True)
        return own, [(unit, read_shard_of(own, self.run, unit)) for unit in own.units]
