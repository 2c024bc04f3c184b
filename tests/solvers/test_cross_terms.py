"""Sparse cross terms give what dense ones give, wherever they come in."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from bench.small_instances import random_instance
from hpcmpq import cross_terms
from hpcmpq.errors import UserError
from hpcmpq.problem import Termination
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.compact.compact import Compact, restrict
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof.gilmore_lawler import least_terms


def dense_of(compact: Compact) -> np.ndarray:
    return cross_terms.dense_rows(compact.quad_PP, np.arange(compact.num_options))


def pairs_of_compacts() -> list[tuple[Compact, Compact]]:
    """(dense, sparse) compact forms of instances with ties, forbidden options and entries that are missing."""
    found = []
    for seed in range(60):
        problem = random_instance(seed).problem()
        quad_PP = np.where(
            np.random.default_rng(seed).random(problem.quad_PP.shape) < 0.4, problem.quad_PP, 0.0
        )
        quad_PP = np.triu(quad_PP) + np.triu(quad_PP).T
        dense = presolve(replace(problem, quad_PP=quad_PP))
        sparse = presolve(replace(problem, quad_PP=scipy.sparse.coo_matrix(quad_PP)))
        if isinstance(dense, Compact) and dense.num_groups:
            assert isinstance(sparse, Compact)
            found.append((dense, sparse))
        else:
            assert isinstance(sparse, str) or sparse.num_groups == 0
    return found


def test_the_compact_form_its_parts_and_bounds_are_those_of_dense_terms() -> None:
    rng = np.random.default_rng(0)
    compacts = pairs_of_compacts()
    assert len(compacts) > 20
    for dense, sparse in compacts:
        size = abs(dense.linear_P).max() + abs(dense.quad_PP).max()
        same = {"rtol": 1e-12, "atol": 1e-13 * size}
        np.testing.assert_allclose(dense_of(sparse), dense.quad_PP, **same)
        np.testing.assert_allclose(sparse.linear_P, dense.linear_P, **same)
        np.testing.assert_allclose(least_terms(sparse), least_terms(dense), **same)
        choice_G = dense.offset_H[:-1]
        assert sparse.objective(choice_G) == pytest.approx(
            dense.objective(choice_G), rel=1e-9, abs=1e-12 * size
        )
        keep_P = rng.random(dense.num_options) < 0.7
        keep_P[choice_G] = True
        smaller, other = restrict(dense, keep_P), restrict(sparse, keep_P)
        assert smaller is not None and other is not None
        np.testing.assert_allclose(dense_of(other), smaller.quad_PP, **same)
        np.testing.assert_allclose(other.linear_P, smaller.linear_P, **same)


def test_rows_are_added_as_they_are() -> None:
    quad_PP = np.array([[0.0, 2.0, -1.0], [2.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    for terms in (quad_PP, scipy.sparse.csr_array(quad_PP)):
        total_P = np.ones(3)
        cross_terms.add_row(terms, 0, total_P, 1.0)
        cross_terms.add_row(terms, 1, total_P, -1.0)
        assert total_P.tolist() == [-1.0, 3.0, 0.0]
        assert cross_terms.rows_sum(terms, np.array([0, 2])).tolist() == [-1.0, 2.0, -1.0]
        assert cross_terms.size_among(terms, np.array([0, 2])) == 2.0


def test_a_solver_that_needs_dense_terms_says_so_and_nan_is_refused() -> None:
    problem = random_instance(5).problem()
    sparse = replace(problem, quad_PP=scipy.sparse.csr_array(problem.quad_PP))
    with pytest.raises(UserError, match="choose the solver quadratic"):
        make_solver("linear").solve(sparse, time_limit_s=1.0, seed=0)
    broken = replace(sparse, quad_PP=sparse.quad_PP * np.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        make_solver("quadratic").solve(broken, time_limit_s=1.0, seed=0)


def test_enumeration_takes_sparse_terms() -> None:
    problem = random_instance(5).problem()
    sparse = replace(problem, quad_PP=scipy.sparse.csr_array(problem.quad_PP))
    answers = [make_solver("exhaustive").solve(p, time_limit_s=1.0, seed=0) for p in (problem, sparse)]
    assert answers[0].termination is Termination.OPTIMAL
    assert answers[1].objective == pytest.approx(answers[0].objective)
