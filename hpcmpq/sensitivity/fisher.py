"""Fisher information by sampled output cotangents: all options from one backward pass per row.

    v_n = Λ^½ᵀ ε_n,  ε random signs          so that E[v vᵀ] = Λ  (diag π − ππᵀ for softmax outputs)
    φ_p[n] = ⟨∇_w v_n·z, δ_p⟩
    c_p  = ½ mean φ_p²,   H_pq = mean φ_p φ_q

A row is one cotangent for every sample of a pass at once; per-sample values come from the layers' inputs and output
gradients, ⟨g_y xᵀ, δ⟩, without a backward pass per sample. Compare K-FAC's sampled Fisher (Martens & Grosse 2015).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vjp

from hpcmpq.models.data.samples import Samples
from hpcmpq.sensitivity.draws import generator_of
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.slopes import slopes_of_rows
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.sensitivity.taps import find_layers, run_with_taps
from hpcmpq.sensitivity.uses import Layers

DEFAULT_ROWS = 8
"""Cotangents per sample where the config does not set `sensitivity.probes`."""

ROWS_AT_ONCE = 4
"""Cotangents whose gradients of all outputs of layers are in memory together: options are rounded once for them."""


def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Features]:
    """Features of the options of `groups`, [N, R, rows], one part per pass."""
    layers = find_layers(subject, samples)
    for start, batch in layers.passes(subject, samples):
        yield sampled(subject, layers, batch, groups, first_sample + start)


def sampled(subject: Subject, layers: Layers, batch: Samples, groups: range, first_sample: int) -> Features:
    """The features of one pass."""
    count = subject.num_probes or DEFAULT_ROWS
    with torch.enable_grad():
        z_NTV, inputs, taps, weights = run_with_taps(subject, layers, batch)
    z0_NTV = z_NTV.detach()
    zero_NTV = torch.zeros_like(z0_NTV)
    pull = vjp(lambda u: subject.objective.scaled_displacement(u, z0_NTV, batch.targets), zero_NTV)[1]
    parts = []
    for start in range(0, count, ROWS_AT_ONCE):
        numbers = range(start, min(start + ROWS_AT_ONCE, count))
        rows = [pull(random_signs(z0_NTV, subject.seed, first_sample, row))[0] for row in numbers]
        parts.append(slopes_of_rows(subject, layers, groups, z_NTV, rows, inputs, taps, weights))
    phi_NRF = torch.cat(parts, 2) * count**-0.5
    loss_N = subject.objective.value(z0_NTV, z0_NTV, batch.targets)
    increase_NR = 0.5 * phi_NRF.double().square().sum(2)
    return Features(loss_N.double().cpu().numpy(), increase_NR.cpu().numpy(), phi_NRF)


def random_signs(like_NTV: Tensor, seed: int, first_sample: int, row: int) -> Tensor:
    """Independent ±1 that depend on a sample's place in the calibration set alone, not on the pass."""
    signs = []
    for n in range(len(like_NTV)):
        generator = generator_of((seed * 1_000_003 + first_sample + n) * 4099 + row)
        signs.append(torch.randint(0, 2, like_NTV.shape[1:], generator=generator, dtype=torch.int8))
    return (torch.stack(signs) * 2 - 1).to(like_NTV)
