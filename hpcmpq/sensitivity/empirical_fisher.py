"""Empirical Fisher with the labels, as MPQCO (Chen et al., ICCV 2021, arXiv 2110.06554) expands the task loss.

    φ_p[n] = ⟨∂ log p_y / ∂w, δ_p⟩ = ⟨∂p_y/∂w, δ_p⟩ / p_y
    c_p  = 1/(2N) Σ_n φ_p[n]²
    H_pq = 1/N Σ_n φ_p[n] φ_q[n]             `empirical_fisher`; `mpqco` is block-diagonal: no H

A sample with one label gives the formula as it stands. For a sample with a label at each of T positions the mean
over positions is meant; it is estimated without bias from one backward pass with a random sign per position.
"""

from collections.abc import Iterator

import numpy as np
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import Samples
from hpcmpq.objective import ce_gradient, position_weights
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.fisher import random_signs
from hpcmpq.sensitivity.slopes import row_slopes
from hpcmpq.sensitivity.subject import Contribution, Subject
from hpcmpq.sensitivity.taps import find_layers, run_with_taps


def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Features]:
    """Features of the options of `groups`, one per sample.

    Raises:
        UserError: If the samples have no labels.
    """
    check_labels(samples, "empirical_fisher")
    layers = find_layers(subject, samples)
    for start, batch in layers.passes(subject, samples):
        with torch.enable_grad():
            z_NTV, inputs, taps, weights = run_with_taps(subject, layers, batch)
        z0_NTV = z_NTV.detach()
        share_NT = position_weights(z0_NTV, batch.targets).to(z0_NTV).clamp(min=1e-30)
        sign_NT1 = random_signs(z0_NTV[..., :1], subject.seed, first_sample + start, 0)
        v_NTV = ce_gradient(z0_NTV, z0_NTV, batch.targets) * sign_NT1 / share_NT.sqrt().unsqueeze(-1)
        slope_NR = row_slopes(subject, layers, groups, z_NTV, v_NTV, inputs, taps, weights)
        loss_N = subject.objective.value(z0_NTV, z0_NTV, batch.targets)
        increase_NR = 0.5 * slope_NR.double().square()
        yield Features(loss_N.double().cpu().numpy(), increase_NR.cpu().numpy(), slope_NR.unsqueeze(2))


def measure_diagonal(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution]:
    """MPQCO's c per sample; no interactions."""
    check_labels(samples, "mpqco")
    for part in measure(subject, samples, groups, first_sample):
        for loss, increase_R in zip(part.loss_N, part.increase_NR, strict=True):
            zero_RP = np.zeros((len(increase_R), subject.space.num_options))
            yield Contribution(1, float(loss), increase_R, zero_RP)


def check_labels(samples: Samples, method: str) -> None:
    """Raise `UserError` where a method that differentiates the task loss has no labels."""
    if not samples.labelled or samples.targets is None:
        raise UserError(
            f"sensitivity {method} differentiates the task loss and the calibration data have no labels; let the "
            "factory give (inputs, targets), or use secant, fisher or gauss_newton"
        )
