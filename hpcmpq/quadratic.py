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
