"""First-order loss mean-squared-error of weights and activations, as in arXiv 2505.13060.

    first_order        c_p = E_n[ (⟨g_n, δ_p⟩ + ⟨g_n, e_p⟩)² ]     with the errors that rounding really makes
    first_order_noise  c_p = α_w s_w + α_a s_a,  s = E_n[ Σ g_n² z² ]   rounding as independent relative noise

with g_n the gradient of sample n's task loss in a weight, or in the input of a layer or product through it alone, z
these values themselves, and α = 2^(−2m)/12 for m mantissa bits of the weights' and of the activations' format. An
integer format of b bits is a shared-exponent number with m = b − 1. Input errors are frozen at the original's.

The unit is loss squared, and layers' errors count as independent: c adds up and H is zero, as published. A threshold
is a share of the loss's own mean square, which is kept beside c (`QuadraticModel.task_loss_mean_square`); c is no
loss increase. One forward and one backward pass per batch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hpcmpq.formats import FORMATS, Format
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.layer_kinds import operand_axes
from hpcmpq.objective import OBJECTIVES, ce_gradient, ce_value
from hpcmpq.sensitivity.directions import input_gradient
from hpcmpq.sensitivity.empirical_fisher import check_labels
from hpcmpq.sensitivity.slopes import row_slopes, weight_gradients
from hpcmpq.sensitivity.subject import Contribution, Subject
from hpcmpq.sensitivity.taps import find_layers, leaf_gradients, run_with_taps
from hpcmpq.sensitivity.uses import Layers

MANTISSA_BITS = {"e2m1": 1, "e4m3": 3, "e5m2": 2, "bf16": 7, "fp32": 23}


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
    names = [option.format for option in subject.space.options]
    alpha_P2 = torch.tensor([noise_factors(FORMATS[name]) for name in names], dtype=torch.float64)
    for _, batch in layers.passes(subject, samples):
        with torch.enable_grad():
            z_NTV, inputs, taps, weights = run_with_taps(subject, layers, batch)
        v_NTV = ce_gradient(z_NTV.detach(), z_NTV.detach(), batch.targets)
        grads = leaf_gradients(z_NTV, [*taps, *weights.values()], v_NTV)
        direct = dict(zip(weights, grads[len(taps) :], strict=True))
        columns = []
        for group in groups:
            energy_N2 = torch.stack(
                [
                    group_energy(subject, layers, group, inputs, grads[: len(taps)], direct, len(batch)),
                    input_energy(layers, group, inputs, grads[: len(taps)], len(batch)),
                ],
                1,
            )
            columns.append(energy_N2 @ alpha_P2[subject.space.slice_of(group)].T)
        yield from _contributions(subject, batch, z_NTV, torch.cat(columns, 1))


def noise_factors(format: Format) -> tuple[float, float]:
    """α of the weights and of the activations; zero where activations stay as they are."""
    activation = None if format.activation is None else noise_factor(FORMATS[format.activation])
    return noise_factor(format), activation or 0.0


def noise_factor(format: Format) -> float:
    """α = 2^(−2m)/12, the variance of a rounding error relative to the squared value.

    Example:
        >>> noise_factor(FORMATS["fp8_e4m3"]) * 12
        0.015625
    """
    mantissa_bits = MANTISSA_BITS.get(format.number, format.num_bits - 1)
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


def input_energy(
    layers: Layers, group: int, inputs: list[Tensor], grads: tuple[Tensor, ...], num_samples: int
) -> Tensor:
    """Σ g_n² x² over the inputs of a group's layers and products, float64 [N]."""
    energy_N = torch.zeros(num_samples, dtype=torch.float64)
    for index in layers.uses_of(group):
        use, x = layers.uses[index], inputs[index]
        if operand_axes(use.module):
            scaled = input_gradient(use, x, grads[index]) * x
            energy_N += scaled.double().square().reshape(num_samples, -1).sum(1).cpu()
    return energy_N


def _contributions(
    subject: Subject, batch: Samples, z_NTV: Tensor, value_NR: Tensor
) -> Iterator[Contribution]:
    z0_NTV = z_NTV.detach()
    objective = OBJECTIVES[subject.objective.name]
    loss_N = objective.value(z0_NTV, z0_NTV, batch.targets).double().cpu().numpy()
    square_N = ce_value(z0_NTV, z0_NTV, batch.targets).square().cpu().numpy()
    for loss, square, value_R in zip(loss_N, square_N, value_NR.cpu().numpy(), strict=True):
        zero_RP = np.zeros((len(value_R), subject.space.num_options))
        yield Contribution(1, float(loss), value_R, zero_RP, float(square))
