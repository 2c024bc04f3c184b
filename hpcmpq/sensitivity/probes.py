"""Random output projections, so that features of a large vocabulary take a few numbers per token.

For a sign vector ε with independent ±1 entries, E[(ε·a)(ε·b)] = a·b, so r projections per token divided by √r
give features whose products estimate the exact ones without bias (Hutchinson's trick on the output Hessian).

The signs of token t are a stretch of one random table that starts `STRIDE` entries after token t − 1's: within a
token they are independent, and no sign tensor of tokens × outputs × projections is ever made.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcmpq.sensitivity.draws import generator_of

EXACT_OUTPUTS = 1024
"""Outputs per token up to which features are exact by default."""

DEFAULT_PROBES = 4

STRIDE = 17
"""Table entries between the signs of neighbouring tokens."""

STEP_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Outputs multiplied by signs at once: a CPU's cache, a GPU's memory."""


def num_probes(configured: int | None, num_outputs: int) -> int | None:
    """Projections per token to use: as configured, else exact (None) up to `EXACT_OUTPUTS` outputs."""
    if configured is not None:
        return configured
    return None if num_outputs <= EXACT_OUTPUTS else DEFAULT_PROBES


def make_probes(
    count: int | None, like_NTV: Tensor, *, seed: int, first_sample: int
) -> Callable[[Tensor], Tensor]:
    """A function from features [..., N, T, V] to projections [..., N, T, count], or the identity for None.

    The signs of a sample depend on `seed` and its place in the calibration set alone, so all options, units
    and workers see the same ones.

    Args:
        count: Projections per token r.
        like_NTV: Outputs of the samples; shape, dtype and device count.
        seed: Of the signs.
        first_sample: Place of the first sample in the calibration set.
    """
    if count is None:
        return lambda phi_NTV: phi_NTV
    num_samples, num_tokens, num_outputs = like_NTV.shape
    sign_NrTV = make_signs(count, num_outputs, like_NTV, seed=seed, first_sample=first_sample)
    step = max(1, STEP_ELEMENTS.get(like_NTV.device.type, STEP_ELEMENTS["cuda"]) // num_outputs)

    def project(phi: Tensor) -> Tensor:
        projected = phi.new_empty(*phi.shape[:-1], count)
        for place in range(0, num_tokens, step):
            tokens = slice(place, place + step)
            for n in range(num_samples):
                for k in range(count):
                    signed = phi[..., n, tokens, :] * sign_NrTV[n, k, tokens]
                    projected[..., n, tokens, k] = signed.sum(-1)
        return projected.mul_(count**-0.5)

    return project


def make_signs(count: int, num_outputs: int, like: Tensor, *, seed: int, first_sample: int) -> Tensor:
    """The signs of some samples, [N, count, T, V]: a view of a table that is little larger than [N, count, V].

    Args:
        count: Projections per token r.
        num_outputs: V.
        like: [N, T, ...], whose dtype and device the signs have.
        seed: Of the signs.
        first_sample: Place of the first sample in the calibration set.
    """
    num_samples, num_tokens = like.shape[:2]
    length = num_outputs + STRIDE * (num_tokens - 1)
    tables = []
    for n in range(num_samples):
        generator = generator_of(seed * 1_000_003 + first_sample + n)
        tables.append(torch.randint(0, 2, (count, length), generator=generator, dtype=torch.int8))
    sign_NrL = torch.stack(tables).to(like).mul_(2).sub_(1)
    shape = (num_samples, count, num_tokens, num_outputs)
    return sign_NrL.as_strided(shape, (count * length, length, STRIDE, 1))
