"""The best convex form of the objective: blocks inside groups that are chosen for the bound.

Options of a group exclude each other, so for any symmetric D that is zero between groups and H + D ⪰ 0

    f(x) = (c − ½ diag D)·x + ½ xᵀ (H + D) x

is convex, and its minimum over the simplices within the budgets is a bound. `spectral` starts with D = α s, one number;
here whole blocks rise by an alternating direction method. Its multiplier X ⪰ 0 is the covariance of a relaxed choice:

    X ← positive part of X − ρ (H + D),    D ← D + ((2 X_new − X_old) − Cov y) / ρ  inside groups,

where Cov y = diag y_g − y_g y_gᵀ, and y minimises the form as D follows it. X has a few dozen dimensions, so H is only
ever multiplied by a few columns: their space is kept from step to step and widened by two products (block Lanczos).
D swings about its limit, and the mean of the last steps is much nearer to H + D ⪰ 0 than any of them. Nothing here is
a proof; `spectral` certifies what comes out of it.

Source of the scheme: Povh, Rendl, Wiegele (2006), A boundary point method to solve semidefinite programs.

All of it is in the metric S: vectors times root_P = s^½, matrices S^(−½) · S^(−½).

Axis letters: P options, G groups, E pairs of options of one group, both orders and the diagonal, r dimensions of X.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy  # reads scipy.sparse where it is used

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof.convex_form import onto_simplices, row_sums

STEPS, MEAN_OF = 50, 10
"""Steps at most, and those of whose D the mean is taken."""

GRADIENT_STEPS = 6
"""Steps of y beside one of D."""

PENALTY = 1.0
"""ρ in units of the trace of Cov y over α √P."""

EXTRA, PRODUCTS = 20, 2
"""Directions that are kept beside those of X, and products by which their space is widened."""


@dataclass(frozen=True)
class Inner:
    """Places of the entries inside groups.

    Attributes:
        row_E: Row of every entry, by rows.
        column_E: Its column.
        start_H: First entry of every row, and E at the end.
    """

    row_E: np.ndarray
    column_E: np.ndarray
    start_H: np.ndarray

    def matrix(self, entry_E: np.ndarray) -> "scipy.sparse.csr_array":
        """These entries as a matrix, [P, P]."""
        size = len(self.start_H) - 1
        return scipy.sparse.csr_array((entry_E, self.column_E, self.start_H), shape=(size, size))


def inner_places(compact: Compact) -> Inner:
    """All entries inside groups."""
    size_P = compact.size_G[compact.group_P]
    start_H = np.append(0, np.cumsum(size_P))
    row_E = np.repeat(np.arange(compact.num_options), size_P)
    column_E = np.arange(len(row_E)) - start_H[row_E] + compact.offset_H[compact.group_P[row_E]]
    return Inner(row_E, column_E, start_H)


def covariance(inner: Inner, root_P: np.ndarray, y_P: np.ndarray) -> np.ndarray:
    """Cov y in the metric, [E]."""
    z_P = root_P * y_P
    cov_E: np.ndarray = -z_P[inner.row_E] * z_P[inner.column_E]
    cov_E[inner.row_E == inner.column_E] += root_P**2 * y_P
    return cov_E


def gram(inner: Inner, factor_Pr: np.ndarray) -> np.ndarray:
    """Entries of V Vᵀ inside groups, [E]."""
    entry_E: np.ndarray = np.zeros(len(inner.row_E))
    for first in range(0, factor_Pr.shape[1], 16):  # few columns at a time: E is seven times P, or more
        part = factor_Pr[:, first : first + 16]
        entry_E += np.einsum("er,er->e", part[inner.row_E], part[inner.column_E])
    return entry_E


def raised_blocks(
    compact: Compact,
    scaled_PP: np.ndarray,
    root_P: np.ndarray,
    inside: Callable[[np.ndarray], np.ndarray],
    alpha: float,
    most: float,
    y_P: np.ndarray,
    seed: int,
    deadline: float,
    steps: int = STEPS,
) -> tuple[Inner, np.ndarray, np.ndarray, np.ndarray]:
    """Where D is not zero, its entries, a y that about minimises its form, and the factor V of X = V Vᵀ.

    Args:
        compact: The problem, dense.
        scaled_PP: S^(−½) H S^(−½), float32.
        root_P: S^½.
        inside: Columns to their part orthogonal to all n_g.
        alpha: D starts as α I, which about makes the form convex.
        most: The largest eigenvalue of `scaled_PP` on differences, about.
        y_P: Where y starts.
        seed: Of the first directions.
        deadline: In `time.perf_counter` seconds.
        steps: At most.
    """
    inner = inner_places(compact)
    entry_E = np.where(inner.row_E == inner.column_E, alpha, 0.0)
    trace = float((root_P**2 * y_P * (1.0 - y_P)).sum())
    rho = PENALTY * max(trace, 1e-9 * float((root_P**2).sum())) / (alpha * len(root_P) ** 0.5)
    factor_Pr: np.ndarray = np.zeros((len(root_P), 0), np.float32)
    start = np.random.default_rng(seed).standard_normal((len(root_P), min(EXTRA, len(root_P))))
    basis_Pr, own_E = inside(start.astype(np.float32)), gram(inner, factor_Pr)
    kept, price_C = [entry_E], np.zeros(len(compact.limit_C))
    for step in range(steps):
        begun = time.perf_counter()
        own = inner.matrix(entry_E.astype(np.float32))

        def product(
            u_Pr: np.ndarray, own: scipy.sparse.csr_array = own, v_Pr: np.ndarray = factor_Pr
        ) -> np.ndarray:
            image: np.ndarray = v_Pr @ (v_Pr.T @ u_Pr) - np.float32(rho) * inside(
                scaled_PP @ u_Pr + own @ u_Pr
            )
            return image

        value_r, vector_Pr = _largest(product, basis_Pr, PRODUCTS if step else 4 * PRODUCTS)
        positive = int((value_r > 0).sum())
        basis_Pr = vector_Pr[:, max(0, len(value_r) - positive - EXTRA) :]
        factor_Pr = vector_Pr[:, len(value_r) - positive :] * np.sqrt(value_r[len(value_r) - positive :])
        new_E = gram(inner, factor_Pr)
        middle_E = entry_E + (2.0 * new_E - own_E) / rho
        entry_E, y_P, price_C = _follow(compact, scaled_PP, root_P, inner, middle_E, rho, most, y_P, price_C)
        own_E = new_E
        kept = [*kept, entry_E][-MEAN_OF:]
        if time.perf_counter() + 1.5 * (time.perf_counter() - begun) > deadline:
            break
    return inner, np.mean(kept, axis=0), y_P, factor_Pr


def _largest(
    product: Callable[[np.ndarray], np.ndarray], basis_Pr: np.ndarray, times: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values and vectors of the space that a basis and its images under so many products span, rising."""
    blocks = [np.linalg.qr(basis_Pr)[0]]
    images = [product(blocks[0])]
    for _ in range(times):
        span_Pr, new_Pr = np.hstack(blocks), images[-1]
        if span_Pr.shape[1] + new_Pr.shape[1] > len(new_Pr):
            break
        for _ in range(2):
            new_Pr = new_Pr - span_Pr @ (span_Pr.T @ new_Pr)
        blocks.append(np.linalg.qr(new_Pr)[0])
        images.append(product(blocks[-1]))
    span_Pr = np.hstack(blocks)
    small_rr = span_Pr.T @ np.hstack(images)
    value_r, turn_rr = np.linalg.eigh(0.5 * (small_rr + small_rr.T))
    return value_r, span_Pr @ turn_rr


def _follow(
    compact: Compact,
    scaled_PP: np.ndarray,
    root_P: np.ndarray,
    inner: Inner,
    middle_E: np.ndarray,
    rho: float,
    most: float,
    y_P: np.ndarray,
    price_C: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D = middle − Cov y / ρ and the y that about minimises its form, by accelerated projected gradient steps.

    That D follows y within a step is what keeps the method stable at a small ρ.
    """
    steep_P = 1.1 * most + row_sums(inner.matrix(middle_E), len(root_P))
    weight_P = steep_P * root_P**2 + 0.5 * root_P**4 / rho
    onto = onto_simplices(compact, weight_P)
    diagonal = inner.row_E == inner.column_E
    x_P, momentum = y_P, 1.0
    for _ in range(GRADIENT_STEPS):
        entry_E = middle_E - covariance(inner, root_P, y_P) / rho
        z_P = root_P * y_P
        product_P = (scaled_PP @ z_P.astype(np.float32)).astype(np.float64) + inner.matrix(entry_E) @ z_P
        priced_P = compact.linear_P - 0.5 * entry_E[diagonal] * root_P**2 + root_P * product_P

        def nearest(price_C: np.ndarray, free_P: np.ndarray = weight_P * y_P - priced_P) -> np.ndarray:
            return onto(free_P - price_C @ compact.cost_CP)

        price_C = prices_within(compact, nearest, price_C)
        new_P = nearest(price_C)
        priced_P += price_C @ compact.cost_CP
        if float(priced_P @ (new_P - x_P)) > 0:
            momentum = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        y_P = new_P + (momentum - 1.0) / following * (new_P - x_P)
        x_P, momentum = new_P, following
    return middle_E - covariance(inner, root_P, x_P) / rho, x_P, price_C


def prices_within(
    compact: Compact, nearest: Callable[[np.ndarray], np.ndarray], price_C: np.ndarray
) -> np.ndarray:
    """The least prices, budget after budget from those before, at which a step keeps the budgets."""
    price_C = price_C.copy()
    for k in range(len(price_C)):

        def excess(price: float, k: int = k) -> float:
            price_C[k] = price
            return float(compact.cost_CP[k] @ nearest(price_C) - compact.limit_C[k])

        low, high = 0.8 * price_C[k], max(1.25 * price_C[k], 1e-6)
        if low == 0.0 or excess(low) <= 0.0:
            low, high = 0.0, low or high
            if excess(0.0) <= 0.0:
                continue
        while excess(high) > 0.0 and high < 1e12:
            low, high = high, 4.0 * high
        for _ in range(10):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if excess(middle) > 0.0 else (low, middle)
        price_C[k] = high
    return price_C
