"""Positive parts of symmetric matrices, by numpy and by torch, against what defines the nearest semidefinite matrix."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.instances import COHERENCE, Shape, make_instance
from hpcmpq.errors import UserError
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.on_gpu import TorchPositivePart
from hpcmpq.solvers.proof import positive_part as part
from hpcmpq.solvers.proof.lapack import positive_pairs
from hpcmpq.solvers.proof.positive_part import positive_part
from hpcmpq.solvers.quadratic import QuadraticSolver

WAYS = {
    "host": positive_part,
    "LAPACK's part": lambda a_nn, expected: positive_pairs(a_nn),
    "torch": TorchPositivePart("cpu", least_rows=1),
    "torch, few rows": TorchPositivePart("cpu"),
}


@pytest.mark.parametrize("way", WAYS)
@given(
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    expected=st.integers(0, 40),
    shift=st.sampled_from([-20.0, 0.0, 20.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_it_is_the_nearest_semidefinite_matrix(way, rows, seed, expected, shift, dtype):
    draws = np.random.default_rng(seed).normal(size=(rows, rows))
    a_nn = (draws + draws.T + shift * np.eye(rows)).astype(dtype)
    eigenvalue_r, vector_nr = WAYS[way](a_nn, expected)
    assert eigenvalue_r.dtype == vector_nr.dtype == dtype
    assert (eigenvalue_r > 0.0).all()
    near_nn = (vector_nr * eigenvalue_r) @ vector_nr.T
    # Moreau: P ⪰ 0, P − A ⪰ 0 and ⟨P, P − A⟩ = 0 make P the projection, and no other matrix has all three.
    error = 400.0 * np.finfo(dtype).eps * rows * max(1.0, float(np.abs(a_nn).max()))
    assert np.linalg.eigvalsh(near_nn.astype(np.float64))[0] >= -error
    assert np.linalg.eigvalsh((near_nn - a_nn).astype(np.float64))[0] >= -error
    assert abs(float((near_nn * (near_nn - a_nn)).sum())) <= error * rows * max(
        1.0, float(np.abs(a_nn).max())
    )


def test_threads_decompose_side_by_side_as_the_whole_does():
    draws_Bnn = np.random.default_rng(0).normal(size=(2, 280, 280)).astype(np.float32)
    symmetric_Bnn = draws_Bnn + draws_Bnn.transpose(0, 2, 1)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(positive_pairs, [*symmetric_Bnn] * 4))
    for (eigenvalue_r, vector_nr), a_nn in zip(found, [*symmetric_Bnn] * 4, strict=True):
        whole_n = np.linalg.eigvalsh(a_nn.astype(np.float64))
        np.testing.assert_allclose(eigenvalue_r, whole_n[whole_n > 0.0], atol=1e-3)
        np.testing.assert_allclose(vector_nr.T @ vector_nr, np.eye(len(eigenvalue_r)), atol=1e-4)
        np.testing.assert_allclose(a_nn @ vector_nr, vector_nr * eigenvalue_r, atol=1e-3)


@pytest.mark.parametrize("entry", [np.nan, np.inf])
def test_entries_that_are_not_finite_are_an_error(entry):
    with pytest.raises(np.linalg.LinAlgError, match="not finite"):
        positive_pairs(np.full((3, 3), entry))


def test_the_whole_takes_over_where_the_part_fails(monkeypatch):
    def failing(a_nn):
        raise np.linalg.LinAlgError("dsyevr ended with 1")

    monkeypatch.setattr(part, "positive_pairs", failing)
    a_nn = np.diag(np.arange(-150.0, 100.0))
    eigenvalue_r, vector_nr = positive_part(a_nn, 20)
    np.testing.assert_allclose((vector_nr * eigenvalue_r) @ vector_nr.T, np.maximum(a_nn, 0.0), atol=1e-9)


@pytest.mark.slow
def test_a_solve_with_torch_proves_what_the_host_proves():
    problem = make_instance(Shape(20, 7, COHERENCE["weak"], False, 4.0))
    host = QuadraticSolver().solve(problem, time_limit_s=60.0, seed=0)
    by_torch = QuadraticSolver(TorchPositivePart("cpu", least_rows=1)).solve(
        problem, time_limit_s=60.0, seed=0
    )
    assert host.proof and by_torch.proof  # both went through the relaxation
    assert by_torch.objective == host.objective
    for one, other in ((host, by_torch), (by_torch, host)):
        assert one.bound <= other.objective


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_it_says_what_to_do(monkeypatch):
    problem = make_instance(Shape(6, 4, COHERENCE["weak"], False, 3.0))
    with pytest.raises(
        UserError, match="needs a GPU and torch sees none here; choose solver quadratic, or give"
    ):
        make_solver("quadratic_gpu").solve(problem, time_limit_s=1.0, seed=0)
    monkeypatch.setitem(sys.modules, "torch", None)  # as on a machine that has none
    with pytest.raises(UserError, match="needs torch, which is not here; choose solver quadratic"):
        make_solver("quadratic_gpu").solve(problem, time_limit_s=1.0, seed=0)
