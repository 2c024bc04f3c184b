"""The monotone link from predicted to measured loss increase, with an interval.

A quadratic cannot saturate, so far from the original it over- or under-predicts by a smooth factor. The link
is a power law, log measured = a + b·log predicted with b ≥ 0, fitted by least squares to measured whole
assignments. Its interval is the jackknife+ of leave-one-out residuals (Barber et al. 2021), which needs no
noise model.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

FLOOR = 1e-12
"""Loss increases below this count as this, so that logarithms exist."""


@dataclass(frozen=True)
class Link:
    """A fitted link.

    Attributes:
        intercept: a.
        slope: b, not negative.
        left_out: (a, b, |residual|) of the fit without each point in turn, float64 [n, 3].
    """

    intercept: float
    slope: float
    left_out: np.ndarray

    def measured(self, predicted: float) -> float:
        """Expected measured loss increase for a predicted one."""
        return float(np.exp(self.intercept + self.slope * np.log(max(predicted, FLOOR))))

    def interval(self, predicted: float, coverage: float = 0.9) -> tuple[float, float]:
        """Jackknife+ interval of the measured loss increase; with n points it covers at most n/(n+1)."""
        log_predicted = np.log(max(predicted, FLOOR))
        centre = self.left_out[:, 0] + self.left_out[:, 1] * log_predicted
        low, high = np.sort(centre - self.left_out[:, 2]), np.sort(centre + self.left_out[:, 2])
        place = min(ceil(coverage * (len(low) + 1)), len(low))
        return float(np.exp(low[len(low) - place])), float(np.exp(high[place - 1]))


def fit_link(predicted_n: np.ndarray, measured_n: np.ndarray) -> Link:
    """Fit the link to predicted and measured loss increases of n ≥ 3 assignments.

    Raises:
        ValueError: With fewer than three points.

    Example:
        >>> x = np.array([0.1, 0.2, 0.4, 0.8])
        >>> round(fit_link(x, 2 * x).measured(0.3), 6)
        0.6
    """
    if len(predicted_n) < 3:
        raise ValueError(f"a link needs at least 3 measured assignments, got {len(predicted_n)}")
    x_n, y_n = np.log(np.maximum(predicted_n, FLOOR)), np.log(np.maximum(measured_n, FLOOR))
    left_out = []
    for i in range(len(x_n)):
        a, b = _line(np.delete(x_n, i), np.delete(y_n, i))
        left_out.append((a, b, abs(y_n[i] - a - b * x_n[i])))
    return Link(*_line(x_n, y_n), np.array(left_out))


def _line(x_n: np.ndarray, y_n: np.ndarray) -> tuple[float, float]:
    spread = float(((x_n - x_n.mean()) ** 2).sum())
    slope = float(((x_n - x_n.mean()) * (y_n - y_n.mean())).sum()) / spread if spread > 0 else 0.0
    slope = max(0.0, slope)
    return float(y_n.mean() - slope * x_n.mean()), slope
