"""Messages between groups: what a certificate's excesses still prove when moved about.

A certificate reads f(x) ≥ value + Σ_g own[x_g] + Σ_{g<h} pair[x_g, x_h]. Anything may be taken from all pairs of an
option with a group and added to the option's own term: for one-hot x the sum stays the same. The sum of the separate
minima rises when every option first collects the least excess of its pairs with each group and then shares what it has
above its group's best option among the pairs that come later in the order, there and back: sequential tree-reweighted
message passing. A multiplier that has converged leaves nothing to gain; one after a few dozen steps leaves a sixth of
the gap, and half of the options that could be excluded.

Source: Kolmogorov (2006), Convergent tree-reweighted message passing for energy minimization.

Axis letters: G, H groups, k padded options, X padded options G·k.
"""

import numpy as np

SWEEPS = 8
"""Passes over all groups, there and back; most of the gain comes from the first two."""


def tightened(own_Gk: np.ndarray, pair_GkkH: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(rise of the bound, own excesses, pair excesses) after the messages; all excesses are ≥ 0, inf where excluded.

    Args:
        own_Gk: Own excesses, inf where an option is excluded.
        pair_GkkH: Pair excess of option a of group g with b of h at [g, b, a, h], symmetric, inf where excluded, zero
            inside groups; overwritten.
    """
    num_groups = len(own_Gk)
    alive_Gk = np.isfinite(own_Gk)
    message_HkG = _messages(np.where(alive_Gk, own_Gk, 0.0), alive_Gk, pair_GkkH)
    own_Gk = own_Gk + message_HkG.sum(axis=0).T
    size = float(np.abs(message_HkG).max())
    sent_GkkH = message_HkG.transpose(2, 1, 0)[:, None, :, :] + message_HkG[:, :, None, :]
    pair_GkkH -= sent_GkkH
    groups = np.arange(num_groups)
    pair_GkkH[groups, :, :, groups] = 0.0
    own_G, least_GH = own_Gk.min(axis=1), pair_GkkH.min(axis=(1, 2))
    gain = float(own_G.sum()) + 0.5 * float(least_GH.sum())
    if not np.isfinite(gain):
        return np.inf, own_Gk, pair_GkkH
    finite = np.isfinite(pair_GkkH)
    size += float(np.abs(pair_GkkH, where=finite, out=np.zeros_like(pair_GkkH)).max()) + float(
        np.abs(own_G).max()
    )
    own_Gk -= own_G[:, None]
    pair_GkkH -= least_GH[:, None, None, :]
    return gain - 8.0 * float(np.finfo(np.float64).eps) * num_groups**2 * size, own_Gk, pair_GkkH


def _messages(own_Gk: np.ndarray, alive_Gk: np.ndarray, pair_GkkH: np.ndarray) -> np.ndarray:
    """What option [h, b] takes from its pairs with group g, at [g, b, h]; zero for options that are excluded."""
    num_groups, width = own_Gk.shape
    message_GkH = np.zeros((num_groups, width, num_groups))
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for g in range(num_groups) if forward else reversed(range(num_groups)):
            alive_k = alive_Gk[g]
            least_kH = (pair_GkkH[g] - message_GkH[g][:, None, :]).min(axis=0)
            least_kH[:, g] = 0.0
            least_kH[~alive_k] = 0.0
            least_kH[~np.isfinite(least_kH)] = 0.0
            total_k = own_Gk[g] + least_kH.sum(axis=1)
            above_k = np.where(alive_k, total_k - total_k[alive_k].min(initial=np.inf), 0.0)
            later = slice(g + 1, None) if forward else slice(0, g)
            least_kH[:, later] -= above_k[:, None] / max(g, num_groups - 1 - g, 1)
            message_GkH[:, :, g] = least_kH.T
    return message_GkH
