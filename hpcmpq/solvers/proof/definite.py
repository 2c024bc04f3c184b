"""Proof that a large symmetric matrix is positive semidefinite up to a stated shift, within a deadline.

A blocked Cholesky factorisation L of A is checked afterwards: A = L Lᵀ + E, so λ_min(A) ≥ −‖E‖_F. Nothing is
assumed about how L was computed; rounding in E itself is at most 2 n ε tr(L Lᵀ), since the rows of L have the squared
norms of the diagonal.

Axis letters: P options.
"""

import time
from collections.abc import Callable

import numpy as np

BLOCK = 1024


def proven_shift(
    fill: Callable[[slice, slice], np.ndarray], size: int, deadline: float, block: int = BLOCK
) -> float | None:
    """A δ ≥ 0 with A + δ I ⪰ 0.

    Args:
        fill: Rows and columns to that part of A, float64; called for the lower triangle only.
        size: Rows of A.
        deadline: In `time.perf_counter` seconds.
        block: Rows of one block.

    Returns:
        δ, or None when A is not positive definite or time ran out.

    Example:
        >>> a = np.array([[2.0, 1.0], [1.0, 2.0]])
        >>> proven_shift(lambda rows, columns: a[rows, columns].copy(), 2, float("inf")) < 1e-12
        True
    """
    parts = [slice(first, min(first + block, size)) for first in range(0, size, block)]
    lower_PP = np.zeros((size, size))
    for k, own in enumerate(parts):
        done = slice(0, own.start)
        for rows in parts[k:]:
            if time.perf_counter() > deadline:
                return None
            lower_PP[rows, own] = fill(rows, own)
            lower_PP[rows, own] -= lower_PP[rows, done] @ lower_PP[own, done].T
        try:
            corner = np.linalg.cholesky(lower_PP[own, own])
        except np.linalg.LinAlgError:
            return None
        lower_PP[own, own] = corner
        for rows in parts[k + 1 :]:
            lower_PP[rows, own] = np.linalg.solve(corner, lower_PP[rows, own].T).T
    squared, trace = 0.0, 0.0
    for k, own in enumerate(parts):
        reach = slice(0, own.stop)
        for rows in parts[k:]:
            if time.perf_counter() > deadline:
                return None
            error = fill(rows, own) - lower_PP[rows, reach] @ lower_PP[own, reach].T
            squared += (1.0 if rows is own else 2.0) * float((error**2).sum())
            if rows is own:
                trace += float((lower_PP[rows, reach] ** 2).sum())
    return 1.01 * squared**0.5 + 4.0 * size * float(np.finfo(np.float64).eps) * trace


def largest_eigenvalue(a_nn: np.ndarray, first: float = 0.0) -> float:
    """The largest eigenvalue of a symmetric float64 matrix, or, of a large one, a number not far above it.

    A Cholesky factorisation that succeeds on δ I − A proves λ_max ≤ δ + 2 (n + 2) ε tr(δ I − A) (Higham, Accuracy and
    Stability of Numerical Algorithms, theorem 10.5); δ grows until one does. Where A has no positive eigenvalues
    but by rounding, as after a step, that takes a tenth of the eigenvalues' time.

    Args:
        a_nn: The matrix, float64 [n, n].
        first: A δ to try first, such as an eighth of what a similar matrix needed.

    Example:
        >>> largest_eigenvalue(np.diag([1.0, -2.0]))
        1.0
    """
    size = len(a_nn)
    if size >= FACTOR_FROM:
        delta = max(1e-13 * float(np.linalg.norm(a_nn)), first)
        for _ in range(14):
            shifted_nn = -a_nn
            shifted_nn[np.arange(size), np.arange(size)] += delta
            trace = float(np.trace(shifted_nn))
            try:
                np.linalg.cholesky(shifted_nn)
            except np.linalg.LinAlgError:
                delta *= 8.0
                continue
            return delta + 2.0 * (size + 2) * float(np.finfo(np.float64).eps) * trace
    return float(np.linalg.eigvalsh(a_nn)[-1])


FACTOR_FROM = 1000
"""Rows from which factorisations are faster than eigenvalues."""
