"""Shrinkage of cross terms towards zero, their value without interaction, so that solvers do not chase noise.

An optimiser that may combine thousands of noisy cross terms finds the ones whose noise is most negative (the
optimiser's curse). Each is multiplied by a factor in [0, 1]: by default its reliability (`hpcmpq.solve.reliability`),
or, for a number k, the positive-part James-Stein factor of one observation,

    H̃_pq = H_pq · max(0, 1 − k² (se_pq / H_pq)²):

an entry at or below k standard errors becomes zero, one at ten times that loses a hundredth.

Two remarks. Consistency: standard errors fall as 1/√N, so H̃ − H = O(1/N) wherever the true entry is not zero.
Definiteness: shrinkage of a positive semidefinite matrix entry by entry need not keep it so; the solver assumes no
definiteness, and what an option does alone (`linear_P`) is never shrunk. What flips of experts' choices add to cross
terms (`hpcmpq.quadratic.flip_terms`) comes from that, and is not shrunk either.

Axis letters: P options.
"""

from dataclasses import replace

import numpy as np

from hpcmpq.quadratic import QuadraticModel, flip_terms
from hpcmpq.solve.reliability import reliability


def shrunk(model: QuadraticModel, shrink: float | str) -> QuadraticModel:
    """The model with its cross terms shrunk, those of every batch and their standard errors by the same factors.

    Args:
        model: As measured.
        shrink: ``auto`` for each term's reliability, k for k standard errors, 0 for none.
    """
    if shrink == 0 or not model.quad_PP.any():
        return model
    group_P = _group_numbers(model.option_group)
    flips_PP = 0.0 if model.flips_P is None else flip_terms(model.flips_P, group_P)
    quad_PP = model.quad_PP - flips_PP
    if isinstance(shrink, str):
        factor_PP = reliability(
            quad_PP,
            model.stderr_quad_PP,
            model.linear_P,
            model.stderr_linear_P,
            group_P,
            np.array(model.option_format),
            model.num_samples,
        )
    else:
        factor_PP = james_stein_factors(quad_PP, model.stderr_quad_PP, shrink)
    return replace(
        model,
        quad_PP=factor_PP * quad_PP + flips_PP,
        stderr_quad_PP=factor_PP * model.stderr_quad_PP,
        batch_quad_BPP=factor_PP * (model.batch_quad_BPP - flips_PP) + flips_PP,
    )


def james_stein_factors(quad_PP: np.ndarray, stderr_PP: np.ndarray, strength: float) -> np.ndarray:
    """max(0, 1 − strength² (se / H)²), entry by entry; 1 where H is zero.

    Args:
        quad_PP: H, symmetric float64 [P, P].
        stderr_PP: Standard errors, ≥ 0, symmetric; zero where not estimated, which leaves H as it is.
        strength: k ≥ 0.

    Raises:
        ValueError: If shapes disagree, a standard error is negative or NaN, or the strength is negative.

    Example:
        >>> james_stein_factors(np.array([[0.0, 2.0], [2.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]), 1.0)
        array([[1.  , 0.75],
               [0.75, 1.  ]])
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
    return np.maximum(0.0, 1.0 - ratio_PP**2)


def _group_numbers(option_group: tuple[str, ...]) -> np.ndarray:
    """The place of every option's group, int64 [P]; options of a group are consecutive."""
    names = np.array(option_group)
    return np.concatenate([[0], np.cumsum(names[1:] != names[:-1])])
