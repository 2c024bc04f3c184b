"""The positive part of a symmetric matrix, which a step of the relaxation projects onto.

Near the end a tenth to a fifth of the eigenvalues are positive, so only their vectors are computed: bisection and
inverse iteration on the tridiagonal form take a third of a whole decomposition's time.

Axis letters: n rows, r positive eigenvalues.
"""

import numpy as np
import scipy.linalg

PARTIAL_FROM = 200
"""Rows from which a part of the decomposition is faster than the whole."""


def positive_part(a_nn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positive eigenvalues, [r], and their vectors, [n, r].

    Example:
        >>> eigenvalue, vector = positive_part(np.array([[0.0, 2.0], [2.0, 0.0]]))
        >>> np.round((vector * eigenvalue) @ vector.T, 12).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    if len(a_nn) >= PARTIAL_FROM:
        try:
            eigenvalue, vector = scipy.linalg.eigh(
                a_nn, driver="evr", subset_by_value=(0.0, np.inf), check_finite=False
            )
            return eigenvalue, vector
        except np.linalg.LinAlgError:  # inverse iteration need not converge; the whole decomposition does
            pass
    eigenvalue, vector = np.linalg.eigh(a_nn)
    first = int(np.searchsorted(eigenvalue, 0.0, side="right"))
    return eigenvalue[first:], vector[:, first:]
