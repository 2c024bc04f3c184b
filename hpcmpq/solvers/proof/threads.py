"""How many threads a proof and its libraries use.

OpenBLAS's threads cost more than they gain on matrices of some hundred rows: on two cores an eigen-decomposition of
280 rows takes twice as long in two threads as in one. So small nodes are bounded side by side instead, each in one.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import scipy.linalg  # noqa: F401  # loads its BLAS, which `threadpool_limits` then finds
from threadpoolctl import threadpool_limits

from hpcmpq.solvers.memory import SIDE_BY_SIDE, SMALL_DIMENSION

T = TypeVar("T")


def threads_of(dimension: int) -> int:
    """Nodes of that dimension that are bounded side by side, at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(SIDE_BY_SIDE, cores) if dimension < SMALL_DIMENSION else 1


def node_pool(side_by_side: int) -> "ThreadPoolExecutor | InThisThread":
    """What runs nodes: threads, each of which keeps BLAS to itself; this thread where it is one node at a time."""
    if side_by_side == 1:
        return InThisThread()
    # An OpenBLAS that is built on OpenMP has a limit of its own in every thread.
    return ThreadPoolExecutor(side_by_side, initializer=threadpool_limits, initargs=(1, "blas"))


class InThisThread:
    """Runs what is submitted at once, so that a signal ends it where it is."""

    def __enter__(self) -> "InThisThread":
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing is left to wait for."""

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> "Future[T]":
        """The result, in a future that is done; whatever is raised is raised here."""
        future: Future[T] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def one_blas_thread(dimension: int) -> Iterator[None]:
    """BLAS keeps to one thread inside where matrices of that dimension are small."""
    if dimension >= SMALL_DIMENSION:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield
