"""Random output projections, so that features of a large vocabulary take a few numbers per token.

For a sign vector ε with independent ±1 entries, E[(ε·a)(ε·b)] = a·b, so r projections per token divided by √r
give features whose products estimate the exact ones without bias (Hutchinson's trick on the output Hessian).
"""

from collections.abc import Callable

import torch
from torch import Tensor

EXACT_OUTPUTS = 1024
"""Outputs per token up to which features are exact by default."""

DEFAULT_PROBES = 4


def num_probes(configured: int | None, num_outputs: int) -> int | None:
    """Projections per token to use: as configured, else exact (None) up to `EXACT_OUTPUTS` outputs."""
    if configured is not None:
        return configured
    return None if num_outputs <= EXACT_OUTPUTS else DEFAULT_PROBES


def make_probes(
    count: int | None, like_NTV: Tensor, *, seed: int, first_sample: int
) -> Callable[[Tensor], Tensor]:
    """A function from [N, T, V] features to [N, T, count] projections, or the identity for None.

    The signs of a sample depend on `seed` and its place in the calibration set alone, so all options, units
    and workers see the same ones.
    """
    if count is None:
        return lambda phi_NTV: phi_NTV
    _, num_tokens, num_outputs = like_NTV.shape
    signs = []
    for n in range(len(like_NTV)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + first_sample + n)
        bits = torch.randint(0, 2, (num_tokens, num_outputs, count), generator=generator, dtype=torch.int8)
        signs.append(bits.mul_(2).sub_(1))
    sign_NTVr = torch.stack(signs).to(like_NTV)
    scale = count**-0.5
    return lambda phi_NTV: torch.einsum("ntv,ntvr->ntr", phi_NTV, sign_NTVr) * scale
