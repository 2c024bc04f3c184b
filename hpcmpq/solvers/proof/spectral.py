"""A convex lower bound for problems too large for the lifted relaxation.

With any d such that H + diag(d) ⪰ 0, one-hot x has x_p² = x_p, so

    f(x) = (c − ½ d)·x + ½ xᵀ (H + diag d) x,

a convex function. Its tangent at any point y of the simplices, minimised over the multiple-choice knapsack by
its Lagrangian, is a valid bound:

    f(x) ≥ q(y) − ∇q(y)·y + Σ_g min_{p in g} (∇q(y) + price·cost)_p − price·limit.

Two points of the simplices differ by a v with Σ_{p in g} v_p = 0, so H + diag d need be positive semidefinite on
these v alone: within S^½ v, orthogonal to one unit vector n_g per group.

Here d = α s with s_p a power of c_p and α just above −λ_min of S^(−½) H S^(−½) on that subspace, found by Lanczos
and certified by a Cholesky factorisation (`definite`) of S^(−½) H S^(−½) + α I + κ Σ n_g n_gᵀ, κ large; y by
accelerated projected gradient. The first power is certified before anything else is tried, so that a slow machine
still gets a bound. Where no shift near the eigenvalue is proven, the largest sum of a row's absolute values proves one.

Axis letters: P options, G groups, C budgets.
"""

import time

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, dual_value
from hpcmpq.solvers.proof.definite import proven_shift
from hpcmpq.solvers.proof.projection import simplex


def spectral_bound(compact: Compact, choice_G: np.ndarray, deadline: float, seed: int) -> float:
    """The bound; a weak one where time runs out before the certificate.

    Args:
        compact: The problem.
        choice_G: A good choice; starts y.
        deadline: In `time.perf_counter` seconds.
        seed: Of the Lanczos start.
    """
    rng = np.random.default_rng(seed)
    bound, certifying_s = -np.inf, 0.0
    for power in POWERS:
        begun = time.perf_counter()
        if certifying_s and begun + 2.0 * certifying_s > deadline:
            break
        root_P = _scales(compact, choice_G, power)
        scaled_PP = _scaled(compact.quad_PP, root_P)
        share = begun + (deadline - begun) / 3
        normal_P = _normals(compact, root_P)
        least, most = _extreme_eigenvalues(scaled_PP, normal_P, compact.group_P, rng, share)
        alpha = max(0.0, -1.002 * least)
        if certifying_s:  # a first certificate exists: is this power worth another?
            y_P = _minimise_convex(
                compact,
                scaled_PP,
                root_P,
                alpha,
                max(alpha + max(most, 0.0), 1e-9),
                choice_G,
                deadline - 1.5 * certifying_s,
            )
            if tangent_bound(compact, alpha * root_P**2, y_P) <= bound:
                continue
        begun = time.perf_counter()
        certain = certified_shift(compact, root_P, normal_P, max(0.0, -least), max(0.0, most), deadline)
        if not certifying_s:
            certifying_s = time.perf_counter() - begun
            y_P = _minimise_convex(
                compact, scaled_PP, root_P, certain, certain + max(most, 0.0), choice_G, deadline
            )
        bound = max(bound, tangent_bound(compact, certain * root_P**2, y_P))
    return bound


POWERS = (0.375, 0.45, 0.3)
"""Exponents of c tried for the square root of s; measured best between the diagonal's 0.5 and 0.25."""


def _scales(compact: Compact, choice_G: np.ndarray, power: float) -> np.ndarray:
    """Square root of s: c^power where most c are positive, else the interaction strength."""
    base_P = compact.linear_P
    if (base_P > 0).mean() < 0.5:
        base_P = (compact.quad_PP[choice_G] ** 2).mean(axis=0)
    floor = max(1e-3 * float(np.median(np.abs(base_P[choice_G]))), 1e-9 * float(np.abs(base_P).max()), 1e-30)
    root_P = np.maximum(base_P, floor) ** power
    root_P = np.maximum(root_P, 0.05 * float(np.median(root_P[choice_G])))
    return root_P / float(np.sqrt((root_P[choice_G] ** 2).mean()))


def convex_form(
    compact: Compact, choice_G: np.ndarray, seed: int, deadline: float
) -> tuple[np.ndarray, np.ndarray]:
    """A shift d that makes the objective convex, but for the error of Lanczos, and an approximate minimiser y."""
    rng = np.random.default_rng(seed)
    root_P = _scales(compact, choice_G, POWERS[0])
    scaled_PP = _scaled(compact.quad_PP, root_P)
    normal_P = _normals(compact, root_P)
    least, most = _extreme_eigenvalues(scaled_PP, normal_P, compact.group_P, rng, deadline)
    alpha = max(0.0, -1.01 * least)
    lipschitz = max(alpha + max(most, 0.0), 1e-9)
    y_P = _minimise_convex(compact, scaled_PP, root_P, alpha, lipschitz, choice_G, deadline)
    return alpha * root_P**2, y_P


def tangent_bound(compact: Compact, shift_P: np.ndarray, y_P: np.ndarray) -> float:
    """The bound of a certified shift d at a point y, float64, less a rounding margin."""
    product_P = compact.quad_PP @ y_P + shift_P * y_P
    gradient_P = compact.linear_P - 0.5 * shift_P + product_P
    value = dual_value(compact, gradient_P, best_prices(compact, gradient_P)) - 0.5 * float(y_P @ product_P)
    size = float(np.abs(gradient_P).max() * compact.num_groups + np.abs(y_P @ product_P))
    return value - 1e-11 * size


def certified_shift(
    compact: Compact, root_P: np.ndarray, normal_P: np.ndarray, estimate: float, most: float, deadline: float
) -> float:
    """An α with S^(−½) H S^(−½) + α I proven positive semidefinite orthogonally to all n_g.

    Where no factorisation proves a small one, or in time, the largest sum of a row's absolute values does.
    """
    size, group_P = len(root_P), compact.group_P
    for growth in (1.01, 1.05, 1.2, 2.0, 10.0):
        alpha = growth * estimate + 1e-9
        stiff = STIFFNESS * (most + alpha)

        def part(rows: slice, columns: slice, alpha: float = alpha, stiff: float = stiff) -> np.ndarray:
            block = compact.quad_PP[rows, columns] / root_P[columns] / root_P[rows, None]
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
    return _largest_row(compact.quad_PP, root_P)


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


def _extreme_eigenvalues(
    a_PP: np.ndarray, normal_P: np.ndarray, group_P: np.ndarray, rng: np.random.Generator, deadline: float
) -> tuple[float, float]:
    """Estimates of the least and largest eigenvalue orthogonally to the n_g, by Lanczos with reorthogonalisation."""
    size = len(a_PP)
    steps = min(size, 80)

    def inside(vector_P: np.ndarray) -> np.ndarray:
        part_G = np.bincount(group_P, weights=normal_P * vector_P)
        projected: np.ndarray = (vector_P - normal_P * part_G[group_P]).astype(np.float32)
        return projected

    basis = np.zeros((steps + 1, size), dtype=np.float32)
    start = inside(rng.standard_normal(size))
    basis[0] = start / np.linalg.norm(start)
    diagonal, off = [], []
    smallest = 1e-6 * max(float(a_PP.max()), -float(a_PP.min()))
    for step in range(steps):
        vector = inside(a_PP @ basis[step])
        diagonal.append(float(vector @ basis[step]))
        for _ in range(2):
            vector -= basis[: step + 1].T @ (basis[: step + 1] @ vector)
        norm = float(np.linalg.norm(vector))
        if norm <= smallest or time.perf_counter() > deadline:
            break
        off.append(norm)
        basis[step + 1] = vector / norm
    count = len(diagonal)
    matrix = np.diag(diagonal) + np.diag(off[: count - 1], 1) + np.diag(off[: count - 1], -1)
    values = np.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])


def _minimise_convex(
    compact: Compact,
    scaled_PP: np.ndarray,
    root_P: np.ndarray,
    alpha: float,
    lipschitz: float,
    choice_G: np.ndarray,
    deadline: float,
) -> np.ndarray:
    """A point y that nearly minimises the convex function; y need not be exact for the bound to be valid.

    Accelerated projected gradient in the metric S, with the budgets priced; prices are renewed from the
    Lagrangian of the current tangent. Restarts when the objective of the priced problem rises.
    """
    width = int(compact.size_G.max())
    position_P = np.arange(compact.num_options) - compact.offset_H[compact.group_P]
    exists = np.zeros((width, compact.num_groups), bool)
    exists[position_P, compact.group_P] = True
    weight = np.ones((width, compact.num_groups))
    weight[position_P, compact.group_P] = lipschitz * root_P**2
    linear_P = compact.linear_P - 0.5 * alpha * root_P**2
    y_P = np.zeros(compact.num_options)
    y_P[choice_G] = 1.0
    x_P, momentum, best_P, best = y_P.copy(), 1.0, y_P.copy(), -np.inf
    price_C = np.zeros(len(compact.limit_C))
    for step in range(GRADIENT_STEPS):
        if time.perf_counter() > deadline:
            break
        product_P = root_P * (scaled_PP @ (root_P * y_P).astype(np.float32)).astype(np.float64)
        product_P += alpha * root_P**2 * y_P
        gradient_P = linear_P + product_P
        if step % 10 == 0:
            price_C = best_prices(compact, gradient_P, sweeps=1)
            value = dual_value(compact, gradient_P, price_C) - 0.5 * float(y_P @ product_P)
            if value > best:
                best, best_P = value, y_P.copy()
        target = np.full((width, compact.num_groups), -np.inf)
        priced_P = gradient_P + price_C @ compact.cost_CP
        target[position_P, compact.group_P] = lipschitz * root_P**2 * y_P - priced_P
        new_P = simplex(target, weight)[position_P, compact.group_P]
        if float(priced_P @ (new_P - x_P)) > 0:
            momentum = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        y_P = new_P + (momentum - 1.0) / following * (new_P - x_P)
        x_P, momentum = new_P, following
    return best_P


GRADIENT_STEPS = 400
