"""Shrinkage of cross terms by their standard errors, so that the solver does not chase sampling noise.

An optimiser that may combine thousands of noisy cross terms finds the ones whose noise is most negative (the
optimiser's curse). Each entry is pulled towards zero, its value without interaction, by the positive-part
James-Stein factor of one observation,

    H̃_pq = H_pq · max(0, 1 − k² (se_pq / H_pq)²),

with k = 1 by default: an entry at or below k standard errors becomes zero, one at ten loses a hundredth. If
H_pq = h_pq + noise with h ~ N(0, τ²), the factor is the empirical-Bayes posterior mean with τ² estimated by
max(0, H_pq² − se²).

Two remarks. Consistency: se falls as 1/√N, so H̃ − H = O(1/N) wherever h ≠ 0, and the estimate is
consistent. Definiteness: entrywise shrinkage of a positive semidefinite matrix need not stay so; the solver
assumes no definiteness, and the diagonal (`linear_P`) is never shrunk.

Axis letters: P options.
"""

import numpy as np


def shrink_cross_terms(quad_PP: np.ndarray, stderr_PP: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """H·max(0, 1 − strength² (se / H)²), entry by entry.

    Args:
        quad_PP: H, symmetric float64 [P, P].
        stderr_PP: Standard errors, ≥ 0, symmetric; zero where not estimated, which leaves H as it is.
        strength: k; 0 leaves H as it is.

    Raises:
        ValueError: If shapes disagree, a standard error is negative or NaN, or the strength is negative.

    Example:
        >>> shrink_cross_terms(np.array([[0.0, 2.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
        array([[0. , 1.5],
               [1.5, 0. ]])
    """
    if quad_PP.shape != stderr_PP.shape:
        raise ValueError(
            f"standard errors have shape {stderr_PP.shape}, cross terms {quad_PP.shape}; must be equal"
        )
    if not (stderr_PP >= 0).all():
        raise ValueError("standard errors must be ≥ 0 and not NaN")
    if not strength >= 0:
        raise ValueError(f"strength is {strength}; must be ≥ 0")
    ratio_PP = np.divide(
        strength * stderr_PP, np.abs(quad_PP), out=np.zeros_like(quad_PP), where=quad_PP != 0
    )
    return quad_PP * np.maximum(0.0, 1.0 - ratio_PP**2)
