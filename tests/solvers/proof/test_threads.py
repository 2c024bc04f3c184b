"""Threads of a step change no bit, and BLAS keeps to one where others use the cores."""

import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bench.instances import COHERENCE, Shape, make_instance
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof import threads
from hpcmpq.solvers.proof.admm import iterate
from hpcmpq.solvers.proof.node import Node, all_pairs, make_node, preconditioner


def blas_threads() -> set[int]:
    """Of every BLAS that is loaded."""
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


@pytest.fixture
def trial(monkeypatch) -> Iterator[Callable[[list[float]], None]]:
    """Sets how long the trials take, in units of one thread's, whatever the machine does meanwhile."""
    monkeypatch.setattr(threads, "_all_threads", lambda: 2)
    monkeypatch.setattr(threads, "_alone_s", lambda: 1.0)

    def takes(seconds: list[float]) -> None:
        threads._free_at.cache_clear()
        left = iter(seconds)
        monkeypatch.setattr(threads, "_trial_s", lambda num_threads: next(left))

    yield takes
    threads._free_at.cache_clear()


@pytest.mark.parametrize(("seconds", "free"), [([1.5], True), ([30.0, 1.5], True), ([30.0, 30.0], False)])
def test_only_large_matrices_on_free_cores_get_all_threads_of_blas(trial, seconds: list[float], free: bool):
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with threads.blas_threads(threads.THREADS_FROM - 1):
            assert blas_threads() == {1}
        assert blas_threads() == before
        with threads.one_blas_thread():
            trial(seconds)
            with threads.blas_threads(threads.THREADS_FROM):
                assert blas_threads() == (before if free else {1})
            assert blas_threads() == {1}
        assert blas_threads() == before


@pytest.mark.parametrize(("seconds", "num_threads"), [(1.5, 3), (30.0, 1)])
def test_a_step_takes_threads_where_cores_are_free(trial, monkeypatch, seconds: float, num_threads: int):
    monkeypatch.setattr(threads, "cores", lambda: 3)
    trial([seconds] * 9)
    together, names = threading.Barrier(num_threads), set()

    def part(place: int) -> None:
        together.wait(timeout=60.0)  # passes only if so many threads work at a time
        names.add(threading.get_ident())

    threads.in_threads(part, range(3), threads.SMALL_DIMENSION)
    assert len(names) == num_threads


def test_the_trial_is_a_decomposition_that_lapack_does():
    assert threads._trial_s(1) > 0.0
    assert threads._alone_s() == threads._alone_s() > 0.0
    eigenvalue = np.linalg.eigvalsh(threads._trial_matrix().astype(np.float64))
    assert 0.05 < (eigenvalue > 0.0).mean() < 0.4


@pytest.mark.parametrize(("asked", "cores"), [("1", 1), ("2,1", 2), ("9", 4), ("", 4), ("0", 4), ("many", 4)])
def test_cores_are_those_asked_for_at_most(monkeypatch, asked: str, cores: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads.cores() == cores


def stepped(monkeypatch, small: int, cores: int) -> Node:
    """A relaxation of 40 groups after some steps."""
    monkeypatch.setattr(threads, "SMALL_DIMENSION", small)
    monkeypatch.setattr(threads, "cores", lambda: cores)
    monkeypatch.setattr(threads, "cores_are_free", lambda: True)
    compact = presolve(make_instance(Shape(40, 5, COHERENCE["medium"], False, 4.0)))
    assert isinstance(compact, Compact)
    node = make_node(compact, all_pairs(compact), preconditioner(compact, compact.offset_H[:-1]))
    for _ in range(5):
        iterate(node.relaxation, node.projector, node.state, node.objective_NN)
    return node


def test_threads_change_no_bit_of_a_step(monkeypatch):
    with threads.one_blas_thread():
        alone, shared = stepped(monkeypatch, 600, 1), stepped(monkeypatch, 1, 3)
    assert shared.relaxation.lift.dimension == 161  # several parts of rows and of groups
    np.testing.assert_array_equal(alone.state.z_NN, shared.state.z_NN)
    np.testing.assert_array_equal(alone.state.y_NN, shared.state.y_NN)


def test_what_a_part_raises_is_raised():
    def fail(part: slice) -> None:
        if part.start:
            raise ArithmeticError("of the second part")

    with pytest.raises(ArithmeticError, match="second part"):
        threads.in_threads(fail, threads.slices(5, 3), threads.SMALL_DIMENSION)
