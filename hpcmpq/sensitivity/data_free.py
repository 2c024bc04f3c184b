"""Baselines that look at weights alone.

    relative_error  c_p = ‖δ_p‖² / ‖w_g‖²
    uniform         c_p = numel_g / numel · 4^(−bits_p)

The second treats every weight alike: its solutions keep all groups at the same width, as far as the budget allows.
Neither is in units of the loss; H is zero.
"""

from collections.abc import Iterator

import numpy as np
import torch

from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.outputs import forward
from hpcmpq.sensitivity.hessian_trace import error_energy
from hpcmpq.sensitivity.subject import Contribution, Subject


def measure_relative_error(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution]:
    """The relative squared error of every option, the same for each sample."""
    columns = []
    for group in groups:
        weights = subject.variants.originals(subject.space.groups[group]).values()
        columns.append(error_energy(subject, group) / sum(float(w.double().square().sum()) for w in weights))
    return _same_for_all(subject, samples, np.concatenate(columns))


def measure_uniform(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution]:
    """A convex price of bits, the same for every weight and sample."""
    total = sum(group.numel for group in subject.space.groups)
    columns = [
        subject.space.groups[option.group].numel / total * 4.0 ** -FORMATS[option.format].num_bits
        for option in subject.space.options
        if option.group in groups
    ]
    return _same_for_all(subject, samples, np.array(columns))


@torch.no_grad()
def _same_for_all(subject: Subject, samples: Samples, linear_R: np.ndarray) -> Iterator[Contribution]:
    zero_RP = np.zeros((len(linear_R), subject.space.num_options))
    for batch in samples.passes(subject.samples_per_pass):
        z0_NTV = forward(subject.model, batch.inputs)
        loss_N = subject.objective.value(z0_NTV, z0_NTV, batch.targets).double().cpu().numpy()
        for loss in loss_N:
            yield Contribution(1, float(loss), linear_R, zero_RP)
