"""Measured losses of whole assignments on given samples: for evaluate, refine and the benches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward
from hpcmpq.objective import OBJECTIVES, counted_positions
from hpcmpq.quantized.side_by_side import SideBySide, find_walk
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Assignment

MAX_KEPT_BYTES = 2**30
"""The original's outputs that are kept to compare with."""


@dataclass(frozen=True)
class Measured:
    """Per-sample results of one assignment.

    Attributes:
        values: {metric: float64 [N]}, means over a sample's tokens: `kl` and, with labels, `ce`; or `mse`.
        correct_N: Labelled positions predicted right, int64 [N]; zero without labels.
        labels_N: Positions that count, int64 [N]: those with a label, or all but padding without labels.
    """

    values: dict[str, np.ndarray]
    correct_N: np.ndarray
    labels_N: np.ndarray


def metric_names(objective: str, labelled: bool) -> tuple[str, ...]:
    """Metrics that are measured for an objective."""
    if objective == "mse":
        return ("mse",)
    return ("kl", "ce") if labelled else ("kl",)


@dataclass
class Comparison:
    """Measures assignments against the original model on the same samples.

    Attributes:
        variants: The model and its quantized weights.
        samples: On the model's device.
        metrics: See `metric_names`.
        samples_per_pass: Samples of one forward pass.
        max_kept_bytes: The original's outputs are computed once if they fit, else every time.
    """

    variants: Variants
    samples: Samples
    metrics: tuple[str, ...]
    samples_per_pass: int
    max_kept_bytes: int = MAX_KEPT_BYTES
    _kept: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def measure(self, assignments: Sequence[Assignment]) -> list[Measured]:
        """Results of each assignment; an empty one is the original."""
        if self._walk is not None:
            return self._side_by_side(self._walk, assignments)
        if self._keep_originals():
            return [join(self._passes(assignment)) for assignment in assignments]
        parts: list[list[Measured]] = [[] for _ in assignments]
        for batch in self.samples.passes(self.samples_per_pass):
            z0_NTV = forward(self.variants.model, batch.inputs)
            for place, assignment in enumerate(assignments):
                with self.variants.assigned(assignment):
                    z_NTV = forward(self.variants.model, batch.inputs)
                parts[place].append(compare(self.metrics, z_NTV, z0_NTV, batch))
        return [join(part) for part in parts]

    @cached_property
    def _walk(self) -> SideBySide | None:
        """How all assignments run at once where the model is streamed."""
        return find_walk(self.variants, self.samples[:2].inputs) if len(self.samples) else None

    def _side_by_side(self, walk: SideBySide, assignments: Sequence[Assignment]) -> list[Measured]:
        models: list[Assignment] = [{}, *assignments]
        batches = list(self.samples.passes(self.samples_per_pass))
        parts: list[list[Measured]] = [[] for _ in assignments]
        for turn in walk.together(len(models), [[batch.inputs] for batch in batches]):
            ended = walk.through(models, [batches[place].inputs for place in turn])
            if walk.searches_outside:
                # Rounding a vocabulary takes longer than the original's outputs once more.
                for model, part in enumerate(parts, 1):
                    for number, place in enumerate(turn):
                        z_NTV, z0_NTV = ended.outputs(model, number), ended.outputs(0, number)
                        part.append(compare(self.metrics, z_NTV, z0_NTV, batches[place]))
                continue
            for number, place in enumerate(turn):
                z0_NTV = ended.outputs(0, number)
                for model, part in enumerate(parts, 1):
                    z_NTV = ended.outputs(model, number)
                    part.append(compare(self.metrics, z_NTV, z0_NTV, batches[place]))
        return [join(part) for part in parts]

    def _passes(self, assignment: Assignment) -> list[Measured]:
        """All passes of one assignment, whose weights are quantized once."""
        batches = self.samples.passes(self.samples_per_pass)
        with self.variants.assigned(assignment):
            return [
                compare(self.metrics, forward(self.variants.model, batch.inputs), z0_NTV, batch)
                for batch, z0_NTV in zip(batches, self._kept, strict=True)
            ]

    def _keep_originals(self) -> bool:
        """Whether the original's outputs on all samples are kept, now that they are computed if they fit."""
        if not self._kept and len(self.samples):
            batches = self.samples.passes(self.samples_per_pass)
            first = forward(self.variants.model, next(batches).inputs)
            if first.nbytes * -(-len(self.samples) // self.samples_per_pass) <= self.max_kept_bytes:
                self._kept = [first, *(forward(self.variants.model, batch.inputs) for batch in batches)]
        return bool(self._kept)


def compare(metrics: tuple[str, ...], z_NTV: Tensor, z0_NTV: Tensor, batch: Samples) -> Measured:
    """Values of one batch whose outputs are z, the original's being z0."""
    values = {n: OBJECTIVES[n].value(z_NTV, z0_NTV, batch.targets).double().cpu().numpy() for n in metrics}
    counted_NT = counted_positions(z_NTV, batch.targets)
    labels_N = counted_NT.sum(1).cpu().numpy()
    if not batch.labelled or batch.targets is None or batch.targets.numel() != counted_NT.numel():
        return Measured(values, np.zeros_like(labels_N), labels_N)
    correct_NT = (z_NTV.argmax(-1) == batch.targets.reshape(counted_NT.shape)) & counted_NT
    return Measured(values, correct_NT.sum(1).cpu().numpy(), labels_N)


def join(parts: list[Measured]) -> Measured:
    """The values of consecutive batches as one."""
    return Measured(
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        np.concatenate([part.correct_N for part in parts]),
        np.concatenate([part.labels_N for part in parts]),
    )
