"""The positive part of a symmetric matrix, which a step of the relaxation projects onto.

Near the end a tenth to a fifth of the eigenvalues are positive, so only their vectors are computed: bisection and
inverse iteration on the tridiagonal form take a third of a whole decomposition's time. In the first steps they are many
and close together, and inverse iteration takes longer: 14 s at 3,361 rows, where the whole grows to about 9.

Axis letters: n rows, r positive eigenvalues.
"""

from collections.abc import Callable

import numpy as np

from hpcmpq.solvers.proof.lapack import positive_pairs

PositivePart = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""`positive_part` and what may take its place."""

PARTIAL_FROM = 200
"""Rows from which a part of the decomposition is faster than the whole."""


LARGEST_SHARE, LARGEST_SHARE_OF_MANY = 0.4, 0.2
"""Share of positive eigenvalues above which the whole is faster, of up to `MANY_ROWS` and of more."""

MANY_ROWS = 1000


def positive_part(a_nn: np.ndarray, expected: int) -> tuple[np.ndarray, np.ndarray]:
    """The positive eigenvalues, [r], and their vectors, [n, r].

    Args:
        a_nn: Symmetric.
        expected: About how many there are, such as in the step before; 0 where that is not known.

    Example:
        >>> eigenvalue, vector = positive_part(np.array([[0.0, 2.0], [2.0, 0.0]]), 0)
        >>> np.round((vector * eigenvalue) @ vector.T, 12).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    share = LARGEST_SHARE if len(a_nn) <= MANY_ROWS else LARGEST_SHARE_OF_MANY
    if len(a_nn) >= PARTIAL_FROM and 0 < expected < share * len(a_nn):
        try:
            return positive_pairs(a_nn)
        except np.linalg.LinAlgError:  # inverse iteration need not converge; the whole decomposition does
            pass
    return of_whole(*np.linalg.eigh(a_nn))


def of_whole(eigenvalue: np.ndarray, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive ones, [r] and [n, r], of all eigenvalues [n], rising, and their vectors [n, n]."""
    first = int(np.searchsorted(eigenvalue, 0.0, side="right"))
    return eigenvalue[first:], vector[:, first:]
