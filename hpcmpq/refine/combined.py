"""What moves away from an assignment change, from two estimates: the global quadratic's and the local measurement.

At the original the loss has no slope, so what an option does alone is a sum of squares, and few samples tell it. At a
quantized assignment it has one: a measured change also holds the products of the option's error with all errors that
are there already, whose mean is small and whose spread over samples is not. Where the quadratic is accurate it knows
a move better than a measurement does; where the loss has left its range, at few bits, it does not know it. Both are
combined by how well they agree. Model of the measured change m of a move that the quadratic predicts as g:

    m = Δ + ε,  ε ~ N(0, se²);      Δ ~ N(b g, ρ² s²),  s the losses of the two options alone,

with b and ρ of largest marginal likelihood over all moves (empirical Bayes; Efron and Morris 1973). The estimate is
the posterior mean b g + w (m − b g), w = ρ² s² / (ρ² s² + se²).

Axis letters: R moves.
"""

from dataclasses import dataclass

import numpy as np

DISCREPANCIES = np.concatenate([[0.0], np.geomspace(0.01, 10.0, 91)])
"""Values of ρ that are tried."""


@dataclass(frozen=True)
class Combined:
    """Estimates of R moves.

    Attributes:
        change_R: Posterior means of the changes of the loss, float64 [R].
        weight_R: Weights w of the measurements, in [0, 1].
        ratio: b: what the quadratic's predictions must be multiplied with.
        discrepancy: ρ: its errors beyond that, as a share of what the two options lose alone.
    """

    change_R: np.ndarray
    weight_R: np.ndarray
    ratio: float
    discrepancy: float


def combined(
    measured_R: np.ndarray, stderr_R: np.ndarray, predicted_R: np.ndarray, scale_R: np.ndarray
) -> Combined:
    """Combine measured and predicted changes; exact measurements are taken as they are.

    Args:
        measured_R: m, float64 [R].
        stderr_R: Their standard errors, ≥ 0.
        predicted_R: g.
        scale_R: s, ≥ 0.

    Example:
        >>> exact = combined(np.array([1.0, -2.0]), np.zeros(2), np.array([0.5, 0.5]), np.ones(2))
        >>> exact.change_R.tolist()
        [1.0, -2.0]
    """
    best: tuple[float, Combined] | None = None
    least = 1e-24 * float((measured_R**2).max()) + 1e-300  # an exact measurement has no variance at ρ = 0
    for discrepancy in DISCREPANCIES:
        prior_R = (discrepancy * scale_R) ** 2
        variance_R = np.maximum(prior_R + stderr_R**2, least)
        information = float((predicted_R**2 / variance_R).sum())
        ratio = float((measured_R * predicted_R / variance_R).sum()) / information if information > 0 else 0.0
        rest_R = measured_R - ratio * predicted_R
        likelihood = -0.5 * float((np.log(variance_R) + rest_R**2 / variance_R).sum())
        weight_R = np.where(stderr_R > 0, prior_R / variance_R, 1.0)
        if best is None or likelihood > best[0]:
            found = Combined(ratio * predicted_R + weight_R * rest_R, weight_R, ratio, float(discrepancy))
            best = likelihood, found
    assert best is not None
    return best[1]
