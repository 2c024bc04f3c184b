"""What a mean hides: how often the likeliest output changes, and the worst tokens.

Divergences of single tokens are counted in narrow logarithmic bins, so that counts of chunks, samples and ranks add.
Shape letters: N samples, T positions, V outputs, B bins.
"""

import numpy as np
import torch
from torch import Tensor

from hpcmpq.objective import counted_positions, kl_positions

EDGES_B = np.logspace(-10.0, 3.0, 521)
"""Ends of the bins: 40 a decade, so that a quantile is known to 3 %. Smaller values count as the smallest."""


def agreements(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None) -> np.ndarray:
    """Counted positions whose likeliest output is the original's, int64 [N]."""
    same_NT = z_NTV.argmax(-1) == z0_NTV.argmax(-1)
    return (same_NT & counted_positions(z_NTV, targets)).sum(1).cpu().numpy()


def divergence_counts(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None) -> np.ndarray:
    """Counted positions by their KL divergence from the original, int64 [N, B]."""
    counted_NT = counted_positions(z_NTV, targets).cpu().numpy().astype(bool)
    with torch.no_grad():
        kl_NT = kl_positions(z_NTV, z0_NTV).cpu().numpy()
    place_NT = np.clip(np.searchsorted(EDGES_B, kl_NT, side="right") - 1, 0, len(EDGES_B) - 2)
    rows = [
        np.bincount(place_T[counted_T], minlength=len(EDGES_B) - 1)
        for place_T, counted_T in zip(place_NT, counted_NT, strict=True)
    ]
    return np.stack(rows)


def quantile(count_B: np.ndarray, share: float) -> float:
    """The divergence that `share` of the positions do not exceed, to the width of a bin; 0 in the lowest bin.

    Example:
        >>> counts = np.zeros(520, dtype=int)
        >>> counts[400] = 100
        >>> bool(EDGES_B[400] <= quantile(counts, 0.99) <= EDGES_B[401])
        True
    """
    wanted = share * count_B.sum()
    place = int(np.searchsorted(np.cumsum(count_B), wanted))
    return 0.0 if place == 0 else float(np.sqrt(EDGES_B[place] * EDGES_B[place + 1]))
