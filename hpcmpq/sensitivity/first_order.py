"""First-order loss mean-squared-error, as in sub-graph mixed precision (arXiv 2505.13060), for weight errors.

    first_order        c_p = E_n[ ⟨g_n, δ_p⟩² ]            with the error that rounding really makes
    first_order_noise  c_p = α_f · s,  s = E_n[ Σ g_n² w² ]   rounding as independent noise of relative size

with g_n the gradient of sample n's task loss and α_f = 2^(−2m)/12 for m mantissa bits. An integer format of b bits
is a shared-exponent number with m = b − 1. The unit is loss squared, and layers' errors count as independent: c adds
up and H is zero, as published. A budget bounds it from above or a threshold from below; it is no loss increase.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hpcmpq.formats import FORMATS, Format
from hpcmpq.models.samples import Samples
from hpcmpq.objective import OBJECTIVES, ce_gradient
from hpcmpq.sensitivity import Contribution, Subject
from hpcmpq.sensitivity.empirical_fisher import check_labels
from hpcmpq.sensitivity.layers import Layers, find_layers, run_with_taps
from hpcmpq.sensitivity.slopes import row_slopes, weight_gradients

MANTISSA_BITS = {"fp8_e4m3": 3, "fp8_e5m2": 2, "bf16": 7}


def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Contribution]:
    """The actual-error form, one contribution per sample.

    Raises:
        UserError: If the samples have no labels.
    """
    check_labels(samples, "first_order")
    layers = find_layers(subject, samples)
    for _, batch in layers.passes(subject, samples):
        with torch.enable_grad():
            z_NTV, inputs, taps, weights = run_with_taps(subject, layers, batch)
        v_NTV = ce_gradient(z_NTV.detach(), z_NTV.detach(), batch.targets)
        slope_NR = row_slopes(subject, layers, groups, z_NTV, v_NTV, inputs, taps, weights)
        yield from _contributions(subject, batch, z_NTV, slope_NR.double().square())


def measure_noise(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution]:
    """The noise-model form, one contribution per sample.

    Raises:
        UserError: If the samples have no labels.
    """
    check_labels(samples, "first_order_noise")
    layers = find_layers(subject, samples)
    alpha_P = [noise_factor(FORMATS[option.format]) for option in subject.space.options]
    for _, batch in layers.passes(subject, samples):
        with torch.enable_grad():
            z_NTV, inputs, taps, weights = run_with_taps(subject, layers, batch)
        v_NTV = ce_gradient(z_NTV.detach(), z_NTV.detach(), batch.targets)
        grads = torch.autograd.grad(z_NTV, [*taps, *weights.values()], v_NTV)
        direct = dict(zip(weights, grads[len(taps) :], strict=True))
        columns = []
        for group in groups:
            energy_N = group_energy(subject, layers, group, inputs, grads[: len(taps)], direct, len(batch))
            own = subject.space.slice_of(group)
            columns.append(energy_N[:, None] * torch.tensor(alpha_P[own], dtype=torch.float64))
        yield from _contributions(subject, batch, z_NTV, torch.cat(columns, 1))


def noise_factor(format: Format) -> float:
    """α = 2^(−2m)/12, the variance of a rounding error relative to the squared weight.

    Example:
        >>> noise_factor(FORMATS["fp8_e4m3"]) * 12
        0.015625
    """
    mantissa_bits = MANTISSA_BITS.get(format.name, format.num_bits - 1)
    return 2.0 ** (-2 * mantissa_bits) / 12


def group_energy(
    subject: Subject, layers: Layers, group: int, inputs: list[Tensor], grads: tuple[Tensor, ...],
    direct: dict[str, Tensor], num_samples: int,
) -> Tensor:  # fmt: skip
    """Σ g_n² w² over a group's weights, float64 [N]; a weight's uses add up before they are squared."""
    energy_N = torch.zeros(num_samples, dtype=torch.float64)
    for name, weight in subject.variants.originals(subject.space.groups[group]).items():
        if name in direct:  # a pass holds one sample here
            energy_N += (direct[name] * weight).double().square().sum().cpu()
            continue
        uses = [index for index in layers.uses_of(group) if layers.uses[index].parameter == name]
        streams = [
            weight_gradients(layers.uses[index], inputs[index], grads[index], num_samples) for index in uses
        ]
        parts = [
            (sum(grad_n) * weight).double().square().flatten(1).sum(1).cpu()
            for grad_n in zip(*streams, strict=True)
        ]
        energy_N += torch.cat(parts)
    return energy_N


def _contributions(
    subject: Subject, batch: Samples, z_NTV: Tensor, value_NR: Tensor
) -> Iterator[Contribution]:
    z0_NTV = z_NTV.detach()
    objective = OBJECTIVES[subject.objective.name]
    loss_N = objective.value(z0_NTV, z0_NTV, batch.targets).double().cpu().numpy()
    for loss, value_R in zip(loss_N, value_NR.cpu().numpy(), strict=True):
        yield Contribution(1, float(loss), value_R, np.zeros((len(value_R), subject.space.num_options)))
