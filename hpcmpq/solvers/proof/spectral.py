"""A convex lower bound for problems too large for the lifted relaxation.

With any d such that H + diag(d) ⪰ 0, one-hot x has x_p² = x_p, so

    f(x) = (c − ½ d)·x + ½ xᵀ (H + diag d) x,

a convex function. Its tangent at any point y of the simplices, minimised over the multiple-choice knapsack by
its Lagrangian, is a valid bound:

    f(x) ≥ q(y) − ∇q(y)·y + Σ_g min_{p in g} (∇q(y) + price·cost)_p − price·limit.

Two points of the simplices differ by a v with Σ_{p in g} v_p = 0, so H + diag d need be positive semidefinite on
these v alone: within S^½ v, orthogonal to one unit vector n_g per group.

First d = α s with s_p a power of c_p and α just above −λ_min of S^(−½) H S^(−½) on that subspace, found by Lanczos
and certified by a Cholesky factorisation (`definite`) of S^(−½) H S^(−½) + α I + κ Σ n_g n_gᵀ, κ large; y by
accelerated projected gradient. Where no shift near the eigenvalue is proven, the largest sum of a row's absolute
values proves one. In the time that is left whole blocks D take the place of d (`free_blocks`), made convex by the
least shift that is certified in the same way.

Axis letters: P options, G groups, C budgets.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # reads scipy.sparse where it is used

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof.convex_form import Form, minimiser, tangent_bound
from hpcmpq.solvers.proof.definite import proven_shift
from hpcmpq.solvers.proof.free_blocks import STEPS, raised_blocks
from hpcmpq.solvers.proof.lanczos import extreme_eigenvalues


def spectral_bound(
    compact: Compact, choice_G: np.ndarray, deadline: float, seed: int, steps: int = STEPS
) -> float:
    """The bound; a weak one where time runs out before the certificate.

    Args:
        compact: The problem.
        choice_G: A good choice; starts y.
        deadline: In `time.perf_counter` seconds.
        seed: Of the Lanczos start.
        steps: Of the blocks inside groups, at most.
    """
    rng, begun = np.random.default_rng(seed), time.perf_counter()
    metric = _metric(compact, choice_G, rng, begun + (deadline - begun) / 6)
    root_P, scaled_PP, normal_P, inside, start_P, smallest, least, most = metric
    alpha = certified_shift(compact, root_P, normal_P, -least, most, deadline)
    form = Form(compact, scaled_PP, root_P, alpha, None)
    y_P = minimiser(form, most, choice_G, begun + 0.5 * (deadline - begun))
    bound = tangent_bound(form, y_P)
    spent = time.perf_counter() - begun
    until = deadline - 1.5 * spent
    if least == 0.0 or time.perf_counter() + 0.5 * spent > until:
        return bound
    inner, entry_E, y_P, factor_Pr = raised_blocks(
        compact, scaled_PP, root_P, inside, -1.01 * least, most, y_P, seed, until, steps
    )
    own = inner.matrix(entry_E)
    own32 = own.astype(np.float32)
    if factor_Pr.shape[1]:
        mixed_P: np.ndarray = factor_Pr @ rng.standard_normal(factor_Pr.shape[1])
        start_P = start_P + inside(mixed_P.astype(np.float32))
    under, _ = extreme_eigenvalues(
        lambda v: inside(scaled_PP @ v + own32 @ v), start_P, smallest, 120, deadline - 0.5 * spent
    )
    shift = certified_shift(compact, root_P, normal_P, max(-under, -1e-3 * least), most, deadline, own)
    if not np.isfinite(shift):
        return bound
    form = Form(compact, scaled_PP, root_P, shift, own)
    y_P = minimiser(form, most, choice_G, deadline, y_P)
    return max(bound, tangent_bound(form, y_P))


class _Metric(NamedTuple):
    """S^½ and what is known of S^(−½) H S^(−½) on differences of points.

    Attributes:
        root_P: S^½.
        scaled_PP: S^(−½) H S^(−½), float32.
        normal_P: n_g of all groups side by side.
        inside: Vectors or columns to their part orthogonal to all n_g.
        start_P: A random vector there.
        smallest: Norm under which a vector is rounding.
        least: The least eigenvalue there, about, at most 0.
        most: The largest, at least 0.
    """

    root_P: np.ndarray
    scaled_PP: np.ndarray
    normal_P: np.ndarray
    inside: Callable[[np.ndarray], np.ndarray]
    start_P: np.ndarray
    smallest: float
    least: float
    most: float


def _metric(compact: Compact, choice_G: np.ndarray, rng: np.random.Generator, deadline: float) -> _Metric:
    root_P = _scales(compact, choice_G)
    scaled_PP, normal_P = _scaled(compact.quad_PP, root_P), _normals(compact, root_P)
    inside = _inside(compact, normal_P)
    start_P = inside(rng.standard_normal(compact.num_options).astype(np.float32))
    smallest = 1e-6 * max(float(scaled_PP.max()), -float(scaled_PP.min()))
    least, most = extreme_eigenvalues(lambda v: inside(scaled_PP @ v), start_P, smallest, 80, deadline)
    return _Metric(root_P, scaled_PP, normal_P, inside, start_P, smallest, min(0.0, least), max(0.0, most))


POWER = 0.375
"""Exponent of c for the square root of s; measured best between the diagonal's 0.5 and 0.25."""


def _scales(compact: Compact, choice_G: np.ndarray) -> np.ndarray:
    """Square root of s: c^POWER where most c are positive, else the interaction strength."""
    base_P = compact.linear_P
    if (base_P > 0).mean() < 0.5:
        base_P = (compact.quad_PP[choice_G] ** 2).mean(axis=0)
    floor = max(1e-3 * float(np.median(np.abs(base_P[choice_G]))), 1e-9 * float(np.abs(base_P).max()), 1e-30)
    root_P = np.maximum(base_P, floor) ** POWER
    root_P = np.maximum(root_P, 0.05 * float(np.median(root_P[choice_G])))
    return root_P / float(np.sqrt((root_P[choice_G] ** 2).mean()))


def convex_form(
    compact: Compact, choice_G: np.ndarray, seed: int, deadline: float
) -> tuple[np.ndarray, np.ndarray]:
    """A shift d that makes the objective convex, but for the error of Lanczos, and an approximate minimiser y."""
    metric = _metric(compact, choice_G, np.random.default_rng(seed), deadline)
    alpha = -1.01 * metric.least
    form = Form(compact, metric.scaled_PP, metric.root_P, alpha)
    return alpha * metric.root_P**2, minimiser(form, metric.most, choice_G, deadline)


def certified_shift(
    compact: Compact,
    root_P: np.ndarray,
    normal_P: np.ndarray,
    estimate: float,
    most: float,
    deadline: float,
    own: "scipy.sparse.csr_array | None" = None,
) -> float:
    """An α with S^(−½) H S^(−½) + own + α I proven positive semidefinite orthogonally to all n_g.

    Where no factorisation proves a small one, or in time, the largest sum of a row's absolute values does; with entries
    inside groups nothing does then, and α is inf.
    """
    size, group_P = len(root_P), compact.group_P
    for growth in (1.01, 1.05, 1.2, 2.0, 10.0):
        alpha = growth * estimate + 1e-9
        stiff = STIFFNESS * (most + alpha)

        def part(rows: slice, columns: slice, alpha: float = alpha, stiff: float = stiff) -> np.ndarray:
            block = compact.quad_PP[rows, columns] / root_P[columns] / root_P[rows, None]
            if own is not None:
                block += own[rows, columns].toarray()
            together = group_P[rows, None] == group_P[columns]
            block[together] += stiff * np.multiply.outer(normal_P[rows], normal_P[columns])[together]
            if rows == columns:
                block[np.arange(len(block)), np.arange(len(block))] += alpha
            return block

        delta = proven_shift(part, size, deadline)
        if delta is not None:
            return alpha + delta
        if time.perf_counter() > deadline:
            break
    return _largest_row(compact.quad_PP, root_P) if own is None else np.inf


STIFFNESS = 100.0
"""κ in units of the largest eigenvalue: what the cross terms with the n_g can take from α is about 1 / κ."""


def _normals(compact: Compact, root_P: np.ndarray) -> np.ndarray:
    """n_g of all groups side by side, [P]: S^(−½) 1 on the group, normalised."""
    inverse_P = 1.0 / root_P
    norm_G = np.sqrt(np.add.reduceat(inverse_P**2, compact.offset_H[:-1]))
    normal_P: np.ndarray = inverse_P / norm_G[compact.group_P]
    return normal_P


def _largest_row(quad_PP: np.ndarray, root_P: np.ndarray) -> float:
    """Largest Σ_q |S^(−½) H S^(−½)|_pq: no eigenvalue lies further from zero (Gershgorin)."""
    most = 0.0
    for first in range(0, len(quad_PP), 512):
        rows = slice(first, first + 512)
        most = max(most, float((np.abs(quad_PP[rows]) @ (1.0 / root_P) / root_P[rows]).max()))
    return most * (1.0 + 4.0 * len(quad_PP) * float(np.finfo(np.float64).eps))


def _scaled(quad_PP: np.ndarray, root_P: np.ndarray) -> np.ndarray:
    out_PP: np.ndarray = np.empty(quad_PP.shape, dtype=np.float32)
    for first in range(0, len(out_PP), 512):
        rows = slice(first, first + 512)
        out_PP[rows] = quad_PP[rows] / root_P / root_P[rows, None]
    return out_PP


def _inside(compact: Compact, normal_P: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Vectors or columns to their part orthogonal to all n_g."""
    group_P, starts, normal_P = compact.group_P, compact.offset_H[:-1], normal_P.astype(np.float32)

    def inside(columns: np.ndarray) -> np.ndarray:
        along = normal_P if columns.ndim == 1 else normal_P[:, None]
        projected: np.ndarray = columns - along * np.add.reduceat(along * columns, starts, axis=0)[group_P]
        return projected

    return inside
