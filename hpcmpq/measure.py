"""Measured losses of whole assignments on given samples: for evaluate, refine and the benches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcmpq.models.calibration import Samples
from hpcmpq.models.load import forward
from hpcmpq.objective import OBJECTIVES
from hpcmpq.variants import Variants

IGNORED = -100
"""Target of a position that has no label."""

Assignment = Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """Per-sample results of one assignment.

    Attributes:
        values: {metric: float64 [N]}, each the mean over a sample's tokens: `kl` and, with targets, `ce`; or `mse`.
        correct_N: Labelled positions predicted right, int64 [N]; zero without targets.
        labels_N: Labelled positions, or all positions without targets, int64 [N].
    """

    values: dict[str, np.ndarray]
    correct_N: np.ndarray
    labels_N: np.ndarray


def metric_names(objective: str, has_targets: bool) -> tuple[str, ...]:
    """Metrics that are measured for an objective."""
    if objective == "mse":
        return ("mse",)
    return ("kl", "ce") if has_targets else ("kl",)


@torch.no_grad()
def measure_assignments(
    variants: Variants,
    samples: Samples,
    objective: str,
    assignments: Sequence[Assignment],
    samples_per_pass: int,
) -> list[Measured]:
    """Measure assignments against the original on the same samples; an empty assignment is the original."""
    parts: list[list[Measured]] = [[] for _ in assignments]
    for start in range(0, len(samples), samples_per_pass):
        batch = samples[start : start + samples_per_pass]
        z0_NTV = forward(variants.model, batch.inputs)
        for place, assignment in enumerate(assignments):
            with variants.assigned(assignment):
                z_NTV = forward(variants.model, batch.inputs)
            parts[place].append(_compare(objective, z_NTV, z0_NTV, batch.targets))
    return [_join(part) for part in parts]


def _compare(objective: str, z_NTV: Tensor, z0_NTV: Tensor, targets_NT: Tensor | None) -> Measured:
    names = metric_names(objective, targets_NT is not None)
    values = {n: OBJECTIVES[n].value(z_NTV, z0_NTV, targets_NT).double().cpu().numpy() for n in names}
    num_samples, num_tokens = z_NTV.shape[:2]
    if targets_NT is None:
        return Measured(
            values, np.zeros(num_samples, np.int64), np.full(num_samples, num_tokens, dtype=np.int64)
        )
    labelled_NT = targets_NT != IGNORED
    correct_NT = (z_NTV.argmax(-1) == targets_NT) & labelled_NT
    return Measured(values, correct_NT.sum(1).cpu().numpy(), labelled_NT.sum(1).cpu().numpy())


def _join(parts: list[Measured]) -> Measured:
    return Measured(
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        np.concatenate([part.correct_N for part in parts]),
        np.concatenate([part.labels_N for part in parts]),
    )
