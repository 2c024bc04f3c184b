"""Extreme eigenvalues of a large symmetric operator, estimated.

Axis letters: P options.
"""

import time
from collections.abc import Callable

import numpy as np


def extreme_eigenvalues(
    product: Callable[[np.ndarray], np.ndarray],
    start_P: np.ndarray,
    smallest: float,
    steps: int,
    deadline: float,
) -> tuple[float, float]:
    """Estimates of the least and largest eigenvalue, by Lanczos with reorthogonalisation; from inside the spectrum.

    Args:
        product: A vector, float32 [P], to its image.
        start_P: Where to start, float32 [P].
        smallest: Norm under which a new direction is rounding.
        steps: At most.
        deadline: In `time.perf_counter` seconds.

    Example:
        >>> diagonal = np.array([-2.0, 1.0, 5.0], dtype=np.float32)
        >>> least, most = extreme_eigenvalues(lambda v: diagonal * v, np.ones(3, np.float32), 1e-6, 3, float("inf"))
        >>> round(least, 4), round(most, 4)
        (-2.0, 5.0)
    """
    steps = min(steps, len(start_P))
    basis = np.zeros((steps + 1, len(start_P)), dtype=np.float32)
    basis[0] = start_P / np.linalg.norm(start_P)
    diagonal, off = [], []
    for step in range(steps):
        vector = product(basis[step])
        diagonal.append(float(vector @ basis[step]))
        for _ in range(2):
            vector = vector - basis[: step + 1].T @ (basis[: step + 1] @ vector)
        norm = float(np.linalg.norm(vector))
        if norm <= smallest or time.perf_counter() > deadline:
            break
        off.append(norm)
        basis[step + 1] = vector / norm
    count = len(diagonal)
    matrix = np.diag(diagonal) + np.diag(off[: count - 1], 1) + np.diag(off[: count - 1], -1)
    values = np.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[-1])
