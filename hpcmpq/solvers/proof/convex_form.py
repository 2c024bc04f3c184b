"""The objective as a convex function of the relaxed choice, its minimiser and the bound of a tangent.

For any D that is zero between groups, one-hot x has ½ xᵀDx = ½ (diag D)·x, so f(x) = (c − ½ diag D)·x + ½ xᵀ (H + D) x.

Axis letters: P options, C budgets.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # reads scipy.sparse where it is used

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, dual_value
from hpcmpq.solvers.proof.projection import simplex


@dataclass(frozen=True)
class Form:
    """The objective as a convex function, (c − ½ diag D)·x + ½ xᵀ (H + D) x, with D = α s + S^½ own S^½.

    Attributes:
        compact: The problem.
        scaled_PP: S^(−½) H S^(−½), float32.
        root_P: S^½.
        alpha: α.
        own: Entries inside groups, or None.
    """

    compact: Compact
    scaled_PP: np.ndarray
    root_P: np.ndarray
    alpha: float
    own: "scipy.sparse.csr_array | None" = None

    def inner(self, y_P: np.ndarray) -> np.ndarray:
        """D y."""
        shifted_P: np.ndarray = self.alpha * self.root_P**2 * y_P
        return shifted_P if self.own is None else shifted_P + self.root_P * (self.own @ (self.root_P * y_P))

    def curvature(self, most: float) -> np.ndarray:
        """By which no option's curvature is exceeded in the metric S, from the largest eigenvalue of H there."""
        return np.full(len(self.root_P), max(most + self.alpha, 1e-9)) + row_sums(self.own, len(self.root_P))

    @property
    def linear_P(self) -> np.ndarray:
        """c − ½ diag D."""
        own_P = 0.0 if self.own is None else self.own.diagonal()
        linear_P: np.ndarray = self.compact.linear_P - 0.5 * (self.alpha + own_P) * self.root_P**2
        return linear_P


def row_sums(own: "scipy.sparse.csr_array | None", size: int) -> np.ndarray:
    """Sum of the absolute values of every row, [P]: a diagonal matrix that is at least the matrix."""
    return np.zeros(size) if own is None else np.asarray(abs(own).sum(axis=1)).ravel()


def onto_simplices(compact: Compact, weight_P: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The projection onto the groups' simplices in a metric: values [P], already times `weight_P`, to the point."""
    places = np.arange(compact.num_options) - compact.offset_H[compact.group_P], compact.group_P
    shape = int(compact.size_G.max()), compact.num_groups
    weight, target = np.ones(shape), np.full(shape, -np.inf)
    weight[places] = weight_P

    def nearest(value_P: np.ndarray) -> np.ndarray:
        target[places] = value_P
        point_P: np.ndarray = simplex(target, weight)[0][places]
        return point_P

    return nearest


def tangent_bound(form: Form, y_P: np.ndarray) -> float:
    """The bound of a certified form at a point y, float64, less a rounding margin."""
    compact = form.compact
    # The form is convex between points of the simplices, which y is up to rounding.
    y_P = y_P / np.add.reduceat(y_P, compact.offset_H[:-1])[compact.group_P]
    product_P = compact.quad_PP @ y_P + form.inner(y_P)
    gradient_P = form.linear_P + product_P
    value = dual_value(compact, gradient_P, best_prices(compact, gradient_P)) - 0.5 * float(y_P @ product_P)
    size = float(np.abs(gradient_P).max() * compact.num_groups + np.abs(y_P @ product_P))
    return value - 1e-11 * size


def minimiser(
    form: Form, most: float, choice_G: np.ndarray, deadline: float, start_P: np.ndarray | None = None
) -> np.ndarray:
    """A point y that nearly minimises the convex function; y need not be exact for the bound to be valid.

    `most` is about the largest eigenvalue of S^(−½) H S^(−½) on differences.

    Accelerated projected gradient in the metric S, with the budgets priced; prices are renewed from the
    Lagrangian of the current tangent. Restarts when the objective of the priced problem rises.
    """
    compact, root_P, linear_P = form.compact, form.root_P, form.linear_P
    steep_P = form.curvature(most) * root_P**2
    nearest = onto_simplices(compact, steep_P)
    y_P = np.zeros(compact.num_options)
    y_P[choice_G] = 1.0
    if start_P is not None:
        y_P = start_P
    x_P, momentum, best_P, best = y_P.copy(), 1.0, y_P.copy(), -np.inf
    price_C = np.zeros(len(compact.limit_C))
    for step in range(GRADIENT_STEPS):
        if step and time.perf_counter() > deadline:
            break
        product_P = root_P * (form.scaled_PP @ (root_P * y_P).astype(np.float32)).astype(np.float64)
        product_P += form.inner(y_P)
        gradient_P = linear_P + product_P
        if step % 10 == 0:
            price_C = best_prices(compact, gradient_P, sweeps=1)
            value = dual_value(compact, gradient_P, price_C) - 0.5 * float(y_P @ product_P)
            if value > best:
                best, best_P = value, y_P.copy()
        priced_P = gradient_P + price_C @ compact.cost_CP
        new_P = nearest(steep_P * y_P - priced_P)
        if float(priced_P @ (new_P - x_P)) > 0:
            momentum = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        y_P = new_P + (momentum - 1.0) / following * (new_P - x_P)
        x_P, momentum = new_P, following
    return best_P


GRADIENT_STEPS = 400
