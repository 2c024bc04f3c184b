"""The quadratic model of the loss: what calibration measures and the solver minimises."""

from dataclasses import dataclass

import numpy as np

from hpcmpq.cross_terms import CrossTerms, sum_among


@dataclass(frozen=True)
class QuadraticModel:
    """loss(x) ≈ loss0 + Σ_p c_p x_p + ½ Σ_{p,q in different groups} H_pq x_p x_q for one-hot x.

    Attributes:
        option_group: Group name of every option, [P]; options of a group are consecutive.
        option_format: Format name of every option, [P].
        linear_P: c, loss increase of each option alone, float64 [P], loss units.
        quad_PP: H, float64 [P, P], symmetric, exactly zero inside groups.
        stderr_linear_P: Standard error of c over samples, float64 [P].
        stderr_quad_PP: Standard error of H over samples, float64 [P, P], zero where not estimated.
        loss0: Loss of the original model.
        objective: ``kl``, ``ce`` or ``mse``.
        method: Sensitivity method that measured it.
        num_samples: Calibration samples behind it.
        batch_linear_BP: c of each of B disjoint calibration batches, float64 [B, P]; B may be 0.
        batch_quad_BPP: H of each batch, float64 [B, P, P].
        task_loss_mean_square: Mean over samples of the squared task loss where c is a mean-squared error of it
            (`first_order`), which thresholds are a share of; else None.
        flips_P: What changed choices of experts add to the loss of each option alone, ≥ 0; `quad_PP` then holds what
            `flip_terms` makes of them, beside the second derivatives; None where no choices were kept.
        tokens_LE: Calibration tokens that each expert was given, by layer, [L, E]; None where that was not counted.
    """

    option_group: tuple[str, ...]
    option_format: tuple[str, ...]
    linear_P: np.ndarray
    quad_PP: np.ndarray
    stderr_linear_P: np.ndarray
    stderr_quad_PP: np.ndarray
    loss0: float
    objective: str
    method: str
    num_samples: int
    batch_linear_BP: np.ndarray
    batch_quad_BPP: np.ndarray
    task_loss_mean_square: float | None = None
    flips_P: np.ndarray | None = None
    tokens_LE: np.ndarray | None = None

    def predicted_loss(self, choice_G: np.ndarray) -> float:
        """Predicted loss of one option index per group, in loss units."""
        return self.loss0 + quadratic_increase(self.linear_P, self.quad_PP, choice_G)


def quadratic_increase(linear_P: np.ndarray, quad_PP: CrossTerms, choice_G: np.ndarray) -> float:
    """c·x + ½ xᵀHx of the one-hot x that selects `choice_G`.

    Args:
        linear_P: float64 [P].
        quad_PP: Symmetric float64 [P, P], dense or sparse, zero inside groups. May be indefinite.
        choice_G: One option index per group, int64 [G].

    Example:
        >>> quadratic_increase(np.array([1.0, 5.0]), np.array([[0.0, 4.0], [4.0, 0.0]]), np.array([0, 1]))
        10.0
    """
    return float(linear_P[choice_G].sum() + 0.5 * sum_among(quad_PP, choice_G))


def flip_terms(flips_P: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """Cross terms with which flips add up about as √(Σ f²), like independent disturbances, symmetric [P, P].

    Options flip the same close choices, so that those of many groups together flip far fewer than the sum of each alone
    (docs/mixtures.md). A quadratic cannot be a root, but one of terms −m_gh √(f_p f_q) grows with f as the root does.
    The m of each pair of groups are such that value and slopes are the root's where groups share flips as they usually
    do: as over the first option of every group, the second, and so on. Both are convex in f, so what flips add is at
    least that plane, and never negative.

    Args:
        flips_P: f, what changed choices add to the loss of each option alone, ≥ 0, float64 [P].
        group_P: Group of every option, int [P], increasing, each followed by the next.

    Example:
        >>> terms = flip_terms(np.array([1.0, 1.0]), np.array([0, 1]))
        >>> round(float(1.0 + 1.0 + terms[0, 1]), 12) == round(2**0.5, 12)
        True
    """
    starts = np.flatnonzero(np.r_[True, group_P[1:] != group_P[:-1]])
    usual_G = _usual_shares(flips_P, starts, np.diff(np.r_[starts, len(group_P)]))
    size = float(np.linalg.norm(usual_G))
    if not size:
        return np.zeros((len(flips_P), len(flips_P)))
    sum_G = 2.0 * usual_G * (1.0 - usual_G / size)
    factor_G = np.sqrt(sum_G)
    for _ in range(SCALINGS):  # of an outer product without its diagonal, until its rows have these sums
        others_G = factor_G.sum() - factor_G
        factor_G = np.sqrt(
            np.divide(factor_G * sum_G, others_G, out=np.zeros_like(sum_G), where=others_G > 0)
        )
    row_G = factor_G * (factor_G.sum() - factor_G)
    over = max(1.0, float(np.divide(row_G, 2.0 * usual_G, out=np.zeros_like(row_G), where=usual_G > 0).max()))
    unit_G = np.divide(factor_G, np.sqrt(over * usual_G), out=np.zeros_like(factor_G), where=usual_G > 0)
    root_P = np.repeat(unit_G, np.diff(np.r_[starts, len(group_P)])) * np.sqrt(flips_P)
    terms_PP = -np.outer(root_P, root_P)
    terms_PP[group_P[:, None] == group_P] = 0.0
    return terms_PP


SCALINGS = 200
"""Steps towards the sums of rows; they converge unless one group has most of the flips."""


def _usual_shares(flips_P: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Each group's share of flips, [G], as a mean over the first option of every group, the second, and so on."""
    shares = []
    for place in range(sizes.max()):
        own_G = flips_P[starts + np.minimum(place, sizes - 1)]
        if own_G.any():
            shares.append(own_G / own_G.sum())
    return np.mean(shares, axis=0) if shares else np.zeros(len(starts))
