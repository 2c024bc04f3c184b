"""Rounding again by several workers: each step of the walk is cut into units, which run wherever an executor runs them.

For the layers of a piece that are given the same tensor: sums over ranges of the samples, then rows of their weights by
the sums; behind the last of them the states of every range move past the piece. What a unit makes is a shard, so no
worker has to have seen what was before, and the same command goes on where one was interrupted. Codes are joined here.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate

import numpy as np

from hpcmpq.errors import CorruptShard, UserError
from hpcmpq.executors import Executor
from hpcmpq.executors.world import node_name
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.plan import Plan
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.rounding.again_worker import make_worker
from hpcmpq.rounding.attempt import RoundingAttempt, Steps, fitted_on, keep_attempt
from hpcmpq.rounding.cuts import MemberRows
from hpcmpq.rounding.taking import Taking
from hpcmpq.space import Member
from hpcmpq.store.attempts import recording
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import remove_abandoned

log = logging.getLogger(__name__)

NOTHING_TO_ROUND = (
    "no weight of the solution can be rounded again: it takes linear layers in integer formats and types of "
    "llama.cpp"
)


def measured_in_units(
    run: RunDir,
    plan: Plan,
    attempt: RoundingAttempt,
    splits: Splits,
    executor: Executor,
    on_weight: Callable[[int, int], None],
    is_over: Callable[[], bool],
    part: tuple[int, int],
    repairs: bool,
) -> tuple[frozenset[str], np.ndarray, np.ndarray]:
    """Names of the weights that have codes, and the losses before and after, which a repair goes without.

    Args:
        run: The run directory.
        plan: The run's.
        attempt: What is tried.
        splits: The plan's samples.
        executor: Where units run.
        on_weight: Called with the weights done and of all.
        is_over: Whether another process has ended the attempt.
        part: (i, n): of n processes that share the run directory this is number i.
        repairs: Whether damaged codes of the solution are made anew.

    Raises:
        UserError: If no weight can have any.
        IncompleteCalibration: If a unit failed for good; what others made is on disk.
        Overtaken: If another process has ended the attempt.
    """
    run = replace(run, measuring="reround")
    size = plan.config.calibration.samples_per_pass
    num_ranges = len(attempt.cuts.sample_ranges(list(fitted_on(splits).passes(size))))
    keep_attempt(run, attempt)
    remove_abandoned(run.shards_path)
    with recording(run, node_name()) as record:
        steps = Steps(run, plan, attempt.name)
        taking = Taking(steps, partial(make_worker, run), executor, record, is_over, part)
        shared = SharedRounding(steps, attempt, num_ranges, taking.take)
        parameters = shared.round(on_weight)
        nothing_N = np.empty(0)
        losses = (
            (nothing_N, nothing_N)
            if repairs
            else shared.losses(list(splits.held_out.passes(size)), parameters)
        )
    for _ in executor.run(partial(make_worker, run), []):  # lets go of the workers
        raise AssertionError("no unit was given")
    return parameters, *losses


@dataclass
class SharedRounding:
    """An attempt, by this process alone or by several that share the run directory.

    Attributes:
        steps: Its shards.
        attempt: What is tried.
        num_ranges: Ranges of the samples, see `hpcmpq.rounding.cuts`.
        take: Takes steps, see `hpcmpq.rounding.taking`.
    """

    steps: Steps
    attempt: RoundingAttempt
    num_ranges: int
    take: Callable[..., None]

    def round(self, on_weight: Callable[[int, int], None]) -> frozenset[str]:
        """Make all codes; the names of the weights that have some.

        Raises:
            UserError: If no weight can have any.
            IncompleteCalibration: If a unit failed for good; what others made is on disk.
            Overtaken: If another process has ended the attempt.
        """
        self.take(["outline"])
        outline = self.steps.read("outline").arrays
        places = [
            (self._members[name], int(place))
            for name, place in zip(outline["parameters"], outline["places"], strict=True)
        ]
        if not places:
            raise UserError(NOTHING_TO_ROUND)
        wanted = dict.fromkeys(member for member, _ in places)
        self.attempt.remove_damaged(self.steps.run, wanted)

        def seen() -> None:
            on_weight(sum(map(self._stored.is_there, wanted)), len(wanted))

        unseen: set[tuple[Member, int]] = set()
        while left := [at for at in places if at not in unseen and not self._stored.is_there(at[0])]:
            first = min(place for _, place in left)
            here = [member for member, place in left if place == first]
            if not self._is_settled(first, here):
                reached = self._reached(first)
                if reached < first:
                    self._advance(reached, first, here)
                    continue
                self._round_piece(first, here, bool(outline["on_cpu"]), seen)
            unseen |= {(member, first) for member in here if not self._stored.is_there(member)}
        return frozenset(member.parameter for member in wanted if self._stored.is_there(member))

    def losses(self, batches: Sequence[Samples], parameters: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The losses of the solution before and after, on every sample of the held-out batches, float64 [N] each.

        Args:
            batches: Held out.
            parameters: Names of the weights that have codes.
        """
        self.steps.write("made", {"parameters": np.array(sorted(parameters), dtype=object)})
        ends = list(accumulate(map(len, batches), initial=0))
        steps = [
            f"losses-{which}-{ends[own.start]}-{ends[own.stop]}"
            for which in ("before", "after")
            for own in self.attempt.cuts.sample_ranges(batches)
        ]
        self.take(steps)
        losses_N = np.concatenate([self.steps.read(step).arrays["losses"] for step in steps])
        return losses_N[: ends[-1]], losses_N[ends[-1] :]

    def _reached(self, first: int) -> int:
        """The last piece, `first` at most, before which the states of all samples are there; 0 needs none."""
        found = self.steps.reached()
        there = (
            place
            for place in range(first, 0, -1)
            if all(f"{place - 1}-states-{k}" in found for k in range(self.num_ranges))
        )
        return next(there, 0)

    def _is_settled(self, place: int, members: Sequence[Member]) -> bool:
        """Whether weights of a piece have codes or are given nothing: another process may have gone far beyond it."""
        missing = {member.parameter for member in members if not self._stored.is_there(member)}
        if not missing or not self.steps.is_there(f"{place}-order"):
            return not missing
        order = self.steps.read(f"{place}-order").arrays
        layers = zip(order["parameters"], order["layers"], strict=True)
        numbers = {int(number) for name, number in layers if name in missing}
        return all(self.steps.made_nothing(f"{place}-{number}-rows-0") for number in numbers)

    def _advance(self, place: int, wanted: int, members: Sequence[Member]) -> None:
        """Move the states past a piece, on the way to one that has weights to be rounded."""
        self.take(
            [f"{place}-states-{k}" for k in range(self.num_ranges)],
            lambda: self._reached(wanted) > place or self._is_settled(wanted, members),
        )
        self.steps.remove(f"{place - 2}-states-{k}" for k in range(self.num_ranges))

    def _round_piece(
        self, place: int, missing: Sequence[Member], on_cpu: bool, on_weight: Callable[[], None]
    ) -> None:
        """Make the codes of a piece's weights that have none."""
        names = {member.parameter: member for member in missing}
        self.take([f"{place}-order"], lambda: self._stored.are_there(missing))
        order = self.steps.read(f"{place}-order").arrays
        for number in range(len(order["calls"])):
            parameters = order["parameters"][order["layers"] == number].tolist()
            own = [names[name] for name in parameters if name in names]
            if self._stored.are_there(own):
                continue
            every = [self._members[name] for name in parameters]
            parts = self.attempt.cuts.row_parts(every, on_cpu)
            done = partial(self._stored.are_there, own)
            sums = self.attempt.cuts.sum_parts(self.num_ranges, every[0].num_columns)
            before = [f"{place}-{number}-sums-{k}" for k in range(len(sums))]
            steps = [f"{place}-{number}-rows-{k}" for k in range(len(parts))]
            self.take(before, done)
            if len(parts) > 1:
                before.append(f"{place}-{number}-fit")
                self.take(before[-1:], done)
            self.take(steps, done)
            if self._join(steps, parts, done):
                self.steps.remove([*before, *steps])
                on_weight()

    def _join(
        self, steps: Sequence[str], parts: Sequence[Sequence[MemberRows]], is_done: Callable[[], bool]
    ) -> bool:
        """Write the codes whose rows were made apart; False where the layers were given nothing."""
        rows: dict[Member, dict[str, list[np.ndarray]]] = {}
        try:
            for step, part in zip(steps, parts, strict=True):
                for name, array in self.steps.read(step).arrays.items():
                    k, _, own = name.partition("/")
                    rows.setdefault(part[int(k)][0], {}).setdefault(own, []).append(array)
        except CorruptShard:  # perhaps another process has joined them
            if not is_done():
                raise
            return True
        for member, arrays in rows.items():
            joined = {name: np.concatenate(own) for name, own in arrays.items()}
            self._stored.write_packed(member, joined, self.steps.plan.config.quantizer)
        return bool(rows)

    @cached_property
    def _stored(self) -> StoredCodes:
        return self.attempt.stored(self.steps.run)

    @cached_property
    def _members(self) -> dict[str, Member]:
        return {m.parameter: m for group in self.steps.plan.space.groups for m in group.members}
