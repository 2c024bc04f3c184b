"""How many threads a proof and its libraries use.

OpenBLAS's threads cost more than they gain on matrices of some hundred rows: on two cores an eigen-decomposition of
280 rows takes twice as long in two threads as in one. So BLAS keeps to one thread, and small nodes are bounded side by
side instead.

In decompositions of large matrices its threads gain while cores are free and lose almost everything where they are not:
one calls BLAS thousands of times, at the end of each call the threads wait for the last, and where another process has
the core of one that is a time slice of the scheduler. 3,361 rows on two cores took 0.7 s in two threads, 1.2 s in one;
beside one busy process 44 s in two, 1.5 s in one.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import numpy as np
import scipy.linalg  # noqa: F401  # loads its BLAS, which the controller then finds
from threadpoolctl import ThreadpoolController

from hpcmpq.solvers.memory import SIDE_BY_SIDE, SMALL_DIMENSION
from hpcmpq.solvers.proof.lapack import positive_pairs

T = TypeVar("T")


def threads_of(dimension: int) -> int:
    """Nodes of that dimension that are bounded side by side, at most."""
    return min(SIDE_BY_SIDE, cores()) if dimension < SMALL_DIMENSION else 1


MOST_THREADS = 8
"""Of a step's work, which more memory than cores limits."""


def in_threads(function: Callable[[T], object], parts: Sequence[T], dimension: int) -> None:
    """Call a function for every part of a step's work, a thread a core where the relaxation is large.

    Args:
        function: Whose parts write to different places, so that threads change no bit.
        parts: Its arguments.
        dimension: Of the relaxation; small ones are themselves bounded side by side, each in one thread.
    """
    threads = 1 if dimension < SMALL_DIMENSION else min(cores(), len(parts), MOST_THREADS)
    # A thread that waits for its core may hold Python's lock meanwhile.
    if threads == 1 or not cores_are_free():
        for part in parts:
            function(part)
        return
    # An OpenBLAS that is built on OpenMP has a limit of its own in every thread.
    with one_blas_thread(), ThreadPoolExecutor(threads, initializer=one_blas_thread) as pool:
        for _ in pool.map(function, parts):
            pass


def slices(count: int, length: int) -> list[slice]:
    """So many rows in parts of that length.

    Example:
        >>> slices(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + length, count)) for first in range(0, count, length)]


def cores() -> int:
    """Cores that this process may use, and no more than OMP_NUM_THREADS where that is set."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(own, int(asked)) if asked.isdecimal() and int(asked) else own


def node_pool(side_by_side: int) -> "ThreadPoolExecutor | InThisThread":
    """What runs nodes: threads, each of which keeps BLAS to itself; this thread where it is one node at a time."""
    if side_by_side == 1:
        return InThisThread()
    # An OpenBLAS that is built on OpenMP has a limit of its own in every thread.
    return ThreadPoolExecutor(side_by_side, initializer=one_blas_thread)


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


@functools.cache
def _libraries() -> ThreadpoolController:
    """What is loaded; looking for it takes a millisecond."""
    return ThreadpoolController()


@functools.cache
def _all_threads() -> int:
    """Of BLAS, as it was when first asked."""
    return max((one["num_threads"] for one in _libraries().select(user_api="blas").info()), default=1)


def one_blas_thread() -> AbstractContextManager[object]:
    """BLAS keeps to one thread from here on, and in a `with` statement until its end."""
    _all_threads()
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


THREADS_FROM = 1500
"""Rows from which BLAS's threads gain anything: at 1,000 a decomposition takes as long in two as in one."""

TRIAL_ROWS, TRIALS, TRIAL_HOLDS_S = 200, 2, 2.0
"""Rows of the decomposition that tries whether cores are free, 1.4 ms of work; how often it is tried, and for how long
its answer holds."""

BUSY = 4.0
"""Times as long as in one thread at which the cores count as busy; beside a busy process it was 30."""


@contextmanager
def blas_threads(rows: int) -> Iterator[None]:
    """BLAS takes all its threads inside where matrices are large and cores are free, one elsewhere.

    Args:
        rows: Of the matrices inside.
    """
    threads = _all_threads() if rows >= THREADS_FROM and cores_are_free() else 1
    with _libraries().limit(limits=threads, user_api="blas"):
        yield


def cores_are_free() -> bool:
    """Whether BLAS may have several threads, and nobody else used their cores, now or a moment ago."""
    return _all_threads() > 1 and _free_at(int(time.monotonic() / TRIAL_HOLDS_S))


@functools.lru_cache(maxsize=1)
def _free_at(moment: int) -> bool:
    """`cores_are_free` by a trial."""
    return any(_trial_s(_all_threads()) < BUSY * _alone_s() for _ in range(TRIALS))


def _trial_s(num_threads: int) -> float:
    """Seconds of a small decomposition in so many threads of BLAS."""
    a_nn = _trial_matrix()
    with _libraries().limit(limits=num_threads, user_api="blas"):
        begun = time.perf_counter()
        positive_pairs(a_nn)
        return time.perf_counter() - begun


@functools.cache
def _alone_s() -> float:
    """The same in one thread, at best."""
    return min(_trial_s(1) for _ in range(5))


@functools.cache
def _trial_matrix() -> np.ndarray:
    """Symmetric, with some positive eigenvalues, float32 [n, n]."""
    half_nn = np.random.default_rng(0).standard_normal((TRIAL_ROWS, TRIAL_ROWS), dtype=np.float32)
    a_nn: np.ndarray = half_nn + half_nn.T
    a_nn -= np.eye(TRIAL_ROWS, dtype=np.float32) * np.float32(1.2 * np.sqrt(2.0 * TRIAL_ROWS))
    return a_nn
