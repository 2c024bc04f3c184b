"""A worker of rounding again: the model loaded once in its process, then a shard for every step of an attempt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcmpq.calibrate.opened import Opened, open_run
from hpcmpq.errors import CorruptShard, UserError
from hpcmpq.executors import Worker
from hpcmpq.models.data.kept_samples import already_said, planned_splits
from hpcmpq.models.data.samples import Splits
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.quantized.stored_codes import packed_codes
from hpcmpq.rounding.attempt import RoundingAttempt, Steps, attempt_called, await_codes, fitted_on
from hpcmpq.rounding.held_piece import HeldPiece
from hpcmpq.rounding.layer_inputs import InputSums, SameInputs, no_sums
from hpcmpq.rounding.methods import Fitted
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir


def make_worker(run: RunDir) -> Worker:
    """Load model and samples once and return the function that takes a step of any attempt."""
    plan = read_plan(run)
    opened = open_run(run, plan, plan.config.model)
    with already_said():
        splits = planned_splits(plan)
    attempts: dict[str, AttemptWorker] = {}

    def work(unit: WorkUnit) -> None:
        name, _, step = unit.id.partition("-")
        if name not in attempts:
            for other in attempts.values():
                other.leave()
            attempts.clear()
            attempts[name] = AttemptWorker(run, plan, opened, splits, attempt_called(run, name))
        attempts[name].take(step)

    return work


@dataclass
class AttemptWorker:
    """What a worker holds of an attempt: a piece of the model, its weights by now, the states of a range of samples.

    Attributes:
        run: Measuring ``reround``.
        plan: The run's.
        opened: The model.
        splits: Its samples.
        attempt: What is tried.
    """

    run: RunDir
    plan: Plan
    opened: Opened
    splits: Splits
    attempt: RoundingAttempt
    _fitted: tuple[str, Fitted | None] | None = None

    def __post_init__(self) -> None:
        samples = fitted_on(self.splits)
        if samples.digest() != self.attempt.samples:
            raise UserError(f"the samples have changed meanwhile; run `{self.run.command}` again")
        batches = list(samples.to(self.opened.device).passes(self.plan.config.calibration.samples_per_pass))
        self.again = self.attempt.again(self.run, self.opened.variants, batches)
        self.steps = Steps(self.run, self.plan, self.attempt.name)
        self.ranges = self.attempt.cuts.sample_ranges(batches)
        self.held = HeldPiece(self.again, self.steps, self.ranges)

    @torch.no_grad()
    def take(self, step: str) -> None:
        """Take a step, unless its shard is there; what it needs is gone where another process is further by now."""
        if self.steps.is_there(step):
            return
        first, *rest = step.split("-")
        try:
            if first == "outline":
                self._outline()
            elif first == "losses":
                self._losses(step, *rest)
            else:
                piece, (kind, *numbers) = int(first), sorted(rest, key=str.isdecimal)
                getattr(self, f"_{kind}")(step, piece, *map(int, numbers))
        except CorruptShard:
            if not self._is_past(first):
                raise

    def leave(self) -> None:
        """Let go of the piece."""
        self.held.leave()
        self._fitted = None

    def _is_past(self, first: str) -> bool:
        """Whether all codes of a piece are there, or a later one is begun: shards of it may be gone."""
        if not first.isdecimal():
            return False
        reached = {step.partition("-")[0] for step in self.steps.reached()}
        later = any(name.isdecimal() and int(name) > int(first) for name in reached)
        return later or not self.again.missing(self.held.pieces[int(first)])

    def _outline(self) -> None:
        found = [
            (m.parameter, place)
            for place, piece in enumerate(self.held.pieces)
            for m in piece.names
            if m in self.again.wanted
        ]
        device = self.opened.device.type
        arrays = {
            "parameters": np.array([name for name, _ in found], dtype=object),
            "places": np.array([place for _, place in found], dtype=np.int64),
            "on_cpu": np.array(device == "cpu"),
        }
        self.steps.write("outline", arrays)

    def _order(self, step: str, place: int) -> None:
        piece = self.held.enter(place, 0)
        self.held.hold(place, 0)
        found = self.again.same_inputs(piece)
        arrays = {
            "parameters": np.array([m.parameter for same in found for m in same.layers], dtype=object),
            "layers": np.repeat(np.arange(len(found)), [len(same.layers) for same in found]),
            "calls": np.array([same.calls for same in found], dtype=np.int64),
        }
        self.steps.write(step, arrays)

    def _sums(self, step: str, place: int, number: int, part: int) -> None:
        piece, same = self.held.enter(place, number), self.held.layers(place)[number]
        numbers = self._sum_parts(same)[part]

        def ranges() -> Iterator[range]:
            for number in numbers:
                self.held.hold(place, number)
                yield self.ranges[number]

        sums = self.again.sums(piece, same, self.held.tensors, ranges())
        parts = {"hessian": sums.hessian_KK, "cross": sums.cross_KK} if sums.num_rows else {}
        self.steps.write(step, _arrays(parts), sums.num_rows)

    def _fit(self, step: str, place: int, number: int) -> None:
        fitted = self._made(place, number)
        self.steps.write(step, _arrays({} if fitted is None else vars(fitted)))

    def _rows(self, step: str, place: int, number: int, part: int) -> None:
        self.held.enter(place, 0)
        parts = self.again.row_parts(list(self.held.layers(place)[number].layers))
        fitted = self._read_fit(place, number) if len(parts) > 1 else self._made(place, number)
        arrays: dict[str, np.ndarray] = {}
        for k, rows in enumerate(parts[part] if fitted is not None else ()):
            assert fitted is not None
            codes = self.again.wanted[rows[0]], self.again.rounded_rows(rows, fitted)
            packed = packed_codes([codes], self.plan.config.quantizer)
            arrays |= {f"{k}/{name}": array for name, array in packed.items()}
        self.steps.write(step, arrays)

    def _made(self, place: int, number: int) -> Fitted | None:
        """What rows are rounded by, of sums that are there; None if the layers are given nothing."""
        same = self.held.layers(place)[number]
        parts = (f"{place}-{number}-sums-{k}" for k in range(len(self._sum_parts(same))))
        total = self.again.added(self._read_sums(step, same) for step in parts)
        quantizer = self.plan.config.quantizer
        return self.again.method.fit(total, quantizer, self.attempt.strength) if total.num_rows else None

    def _read_sums(self, step: str, same: SameInputs) -> InputSums:
        shard = self.steps.read(step)
        if not shard.num_samples:
            return no_sums(next(iter(same.layers)), self.opened.device, self.again.method.needs_original)
        found = {name: torch.from_numpy(x).to(self.opened.device) for name, x in shard.arrays.items()}
        return InputSums(found["hessian"], found.get("cross"), shard.num_samples)

    def _read_fit(self, place: int, number: int) -> Fitted | None:
        step = f"{place}-{number}-fit"
        if self._fitted is None or self._fitted[0] != step:
            self._fitted = None
            arrays = self.steps.read(step).arrays
            tensors = {name: torch.from_numpy(x).to(self.opened.device) for name, x in arrays.items()}
            self._fitted = step, Fitted(**tensors) if tensors else None
        return self._fitted[1]

    def _sum_parts(self, same: SameInputs) -> list[range]:
        return self.attempt.cuts.sum_parts(len(self.ranges), next(iter(same.layers)).num_columns)

    def _states(self, step: str, place: int, number: int) -> None:
        self.steps.write(step, self.held.advanced(place, number))

    def _losses(self, step: str, which: str, start: str, stop: str) -> None:
        self.leave()  # blocks have other weights now
        weights = self.attempt.before_it(self.run, self.plan)
        if which == "after":
            made = set(self.steps.read("made").arrays["parameters"])
            await_codes(self.again.stored, [m for m in self.again.wanted if m.parameter in made])
            weights = self.attempt.after_it(self.run, self.plan, made)
        samples = self.splits.held_out[int(start) : int(stop)].to(self.opened.device)
        [losses_N] = self.attempt.losses(self.plan, self.opened.variants, samples, [weights])
        self.steps.write(step, {"losses": losses_N})


def _arrays(parts: Mapping[str, Tensor | None]) -> dict[str, np.ndarray]:
    return {name: x.cpu().numpy() for name, x in parts.items() if x is not None}
