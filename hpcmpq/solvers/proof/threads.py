"""How many threads a proof and its libraries use.

OpenBLAS's threads cost more than they gain on matrices of some hundred rows: on two cores an eigen-decomposition of
280 rows takes twice as long in two threads as in one. So small nodes are bounded side by side instead, each in one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import scipy.linalg  # noqa: F401  # loads its BLAS, which `threadpool_limits` then finds
from threadpoolctl import threadpool_limits

from hpcmpq.solvers.memory import SIDE_BY_SIDE, SMALL_DIMENSION


def threads_of(dimension: int) -> int:
    """Nodes of that dimension that are bounded side by side."""
    return min(SIDE_BY_SIDE, len(os.sched_getaffinity(0))) if dimension < SMALL_DIMENSION else 1


@contextmanager
def one_blas_thread(dimension: int) -> Iterator[None]:
    """BLAS keeps to one thread inside where matrices of that dimension are small."""
    if dimension >= SMALL_DIMENSION:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
