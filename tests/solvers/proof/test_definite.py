"""Proofs of positive semidefiniteness, against eigenvalues."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmpq.solvers.proof import definite
from hpcmpq.solvers.proof.definite import proven_shift


def shift_of(a_PP: np.ndarray, block: int = 1024) -> float | None:
    return proven_shift(lambda rows, columns: a_PP[rows, columns].copy(), len(a_PP), np.inf, block)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), block=st.integers(1, 17), least=st.floats(-1, 1)
)
def test_a_shift_is_valid_and_small_and_none_is_given_to_indefinite_matrices(seed, size, block, least):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    a_PP = basis @ np.diag(least + rng.exponential(size=size)) @ basis.T
    a_PP = 0.5 * (a_PP + a_PP.T)
    lowest = np.linalg.eigvalsh(a_PP)[0]
    delta = shift_of(a_PP, block)
    if delta is None:
        assert lowest < 1e-9
    else:
        assert lowest + delta >= 0
        assert delta < 1e-10


def test_the_diagonal_is_left_out_at_no_block_size():
    a_PP = np.diag([1.0, 1.0, 1.0, -1e-6])
    assert all(shift_of(a_PP, block) is None for block in (1, 2, 3, 4, 5))


def test_time_that_ran_out_proves_nothing():
    assert proven_shift(lambda rows, columns: np.eye(3)[rows, columns], 3, time.perf_counter() - 1) is None


@pytest.mark.parametrize("block", [2, 5])
def test_a_factor_is_not_trusted_but_checked(block, monkeypatch):
    """A wrong factorisation shows up as a large shift, never as a wrong proof."""
    a_PP = np.full((6, 6), 0.5) + np.eye(6)
    right = np.linalg.cholesky
    monkeypatch.setattr(np.linalg, "cholesky", lambda a: right(a) * 1.1)
    delta = shift_of(a_PP, block)
    assert delta is None or delta > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_eigenvalue_is_bounded_by_factorisations(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    for highest in (-1.0, -1e-7, 0.0, 1e-9, 1e-3, 1.0):
        a_nn = basis @ np.diag(highest - np.append(0.0, rng.exponential(size=29))) @ basis.T
        a_nn = 0.5 * (a_nn + a_nn.T)
        exact = np.linalg.eigvalsh(a_nn)[-1]
        monkeypatch.setattr(definite, "FACTOR_FROM", 1)
        found = definite.largest_eigenvalue(a_nn)
        assert exact <= found <= max(8.1 * exact, 1e-11)
        assert exact <= definite.largest_eigenvalue(a_nn, 1e-5) <= max(8.1 * exact, 1.001e-5)
        monkeypatch.setattr(definite, "FACTOR_FROM", 31)
        assert definite.largest_eigenvalue(a_nn) == exact
