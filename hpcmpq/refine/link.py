"""The monotone link from predicted to measured loss increase, with an interval.

A quadratic cannot saturate, so far from the original it over- or under-predicts by a smooth factor. The link
is a power law, log measured = a + b·log predicted with b ≥ 0, fitted by least squares to measured whole
assignments. Where an increase is not positive, as small changes of a cross entropy may be, it is a line,
measured = a + b·predicted. Its interval is the jackknife+ of leave-one-out residuals (Barber et al. 2021), which
needs no noise model.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np

FLOOR = 1e-12
"""Smallest loss increase that a power law takes."""


@dataclass(frozen=True)
class Link:
    """A fitted link.

    Attributes:
        intercept: a.
        slope: b, not negative.
        logarithmic: Whether it is a power law or a line.
        left_out: (a, b, |residual|) of the fit without each point in turn, float64 [n, 3].
    """

    intercept: float
    slope: float
    logarithmic: bool
    left_out: np.ndarray

    def measured(self, predicted: float) -> float:
        """Expected measured loss increase for a predicted one."""
        return self._back(self.intercept + self.slope * self._scaled(predicted))

    def interval(self, predicted: float, coverage: float = 0.9) -> tuple[float, float]:
        """Jackknife+ interval of the measured loss increase; with n points it covers at most n/(n+1)."""
        centre = self.left_out[:, 0] + self.left_out[:, 1] * self._scaled(predicted)
        low, high = np.sort(centre - self.left_out[:, 2]), np.sort(centre + self.left_out[:, 2])
        place = min(ceil(coverage * (len(low) + 1)), len(low))
        return self._back(low[len(low) - place]), self._back(high[place - 1])

    def _scaled(self, predicted: float) -> float:
        return float(np.log(max(predicted, FLOOR))) if self.logarithmic else predicted

    def _back(self, value: float) -> float:
        return float(np.exp(value)) if self.logarithmic else float(value)


def fit_link(predicted_n: np.ndarray, measured_n: np.ndarray, wanted: float = np.inf) -> Link:
    """Fit the link to predicted and measured loss increases of n ≥ 3 assignments.

    Args:
        predicted_n: Predicted loss increases.
        measured_n: Measured ones.
        wanted: The predicted increase that it is for: a power law has to take it as well.

    Raises:
        ValueError: With fewer than three points.

    Example:
        >>> x = np.array([0.1, 0.2, 0.4, 0.8])
        >>> round(fit_link(x, 2 * x).measured(0.3), 6)
        0.6
    """
    if len(predicted_n) < 3:
        raise ValueError(f"a link needs at least 3 measured assignments, got {len(predicted_n)}")
    logarithmic = bool(min(predicted_n.min(), measured_n.min(), wanted) >= FLOOR)
    x_n, y_n = (np.log(predicted_n), np.log(measured_n)) if logarithmic else (predicted_n, measured_n)
    left_out = []
    for i in range(len(x_n)):
        a, b = _line(np.delete(x_n, i), np.delete(y_n, i))
        left_out.append((a, b, abs(y_n[i] - a - b * x_n[i])))
    return Link(*_line(x_n, y_n), logarithmic, np.array(left_out))


def _line(x_n: np.ndarray, y_n: np.ndarray) -> tuple[float, float]:
    spread = float(((x_n - x_n.mean()) ** 2).sum())
    slope = float(((x_n - x_n.mean()) * (y_n - y_n.mean())).sum()) / spread if spread > 0 else 0.0
    slope = max(0.0, slope)
    return float(y_n.mean() - slope * x_n.mean()), slope
