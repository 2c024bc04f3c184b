"""Bounds by blocks: valid against enumeration, near the optimum where blocks hardly interact, and what makes blocks."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse

from bench.instances import make_blocked_instance
from hpcmpq.solvers import quadratic
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof.blocks import block_bound, make_cut, share
from hpcmpq.solvers.proof.partition import block_of_groups
from hpcmpq.solvers.quadratic import QuadraticSolver
from tests.solvers.proof.enumerated import enumerated


@pytest.mark.parametrize("largest", [1, 2])
def test_no_bound_exceeds_the_enumerated_optimum(largest: int) -> None:
    num_bounds = 0
    for instance, best, compact, choice_G in enumerated(40):
        compact = replace(compact, quad_PP=scipy.sparse.csr_array(compact.quad_PP))
        bound = compact.original_objective(block_bound(compact, choice_G, np.inf, largest, 2))
        assert np.isfinite(bound)
        assert bound <= best[0] + 1e-12 * sum(map(abs, instance.terms(best[1])))
        num_bounds += 1
    assert num_bounds > 15


def test_messages_between_blocks_keep_every_choice_s_sum() -> None:
    compact = presolve(make_blocked_instance(3, 5))
    assert isinstance(compact, Compact)
    rng = np.random.default_rng(0)
    block_G = np.arange(compact.num_groups) // 5
    cut = make_cut(compact, block_G, compact.offset_H[:-1])
    for _ in range(3):
        share(compact, cut, rng.random(compact.num_options))
    across_PP = compact.quad_PP.toarray()
    across_PP[(block_G[compact.group_P][:, None] == block_G[compact.group_P])] = 0.0
    for _ in range(20):
        choice_G = compact.offset_H[:-1] + rng.integers(0, compact.size_G)
        place = [
            np.argmax(cut.option_Esk[:, s] == choice_G[compact.group_P[cut.option_Esk[:, s, :1]]], axis=1)
            for s in (0, 1)
        ]
        rest = cut.rest_Ekk[np.arange(len(cut.rest_Ekk)), place[0], place[1]].sum()
        expected = 0.5 * across_PP[np.ix_(choice_G, choice_G)].sum()
        assert cut.message_P[choice_G].sum() + rest == pytest.approx(expected)


def test_dense_blocks_are_found_among_stronger_single_links() -> None:
    compact = presolve(make_blocked_instance(3, 8))
    assert isinstance(compact, Compact)
    block_G = block_of_groups(compact, 8)
    assert [len(set(part.tolist())) for part in np.split(block_G, 3)] == [1, 1, 1]
    assert len(set(block_G.tolist())) == 3
    assert np.bincount(np.unique(block_of_groups(compact, 3), return_inverse=True)[1]).max() <= 3


def test_a_problem_too_large_to_lift_is_solved_by_blocks(monkeypatch) -> None:
    monkeypatch.setattr(quadratic, "LARGEST_LIFT", 50)
    problem = make_blocked_instance(4, 6)
    answer = QuadraticSolver().solve(problem, time_limit_s=4.0, seed=0)
    assert answer.choice_G is not None and problem.is_feasible(answer.choice_G)
    assert answer.gap is not None and 0.0 < answer.gap < 0.05
    assert "bound by blocks" in answer.part_s and "bound by blocks" in answer.detail
