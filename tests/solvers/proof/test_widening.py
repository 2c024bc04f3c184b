"""A start from fewer options a group: valid against enumeration, ahead of a convex form, the same on those options."""

from dataclasses import replace

import numpy as np
import pytest

from bench.instances import Shape, make_instance
from hpcmpq.problem import Budget, Cost, CostTerm, Problem
from hpcmpq.solvers.compact.compact import Compact, restrict
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof import convex_start, widening
from hpcmpq.solvers.proof.admm import full_scale
from hpcmpq.solvers.proof.node import Node, advance, all_pairs, make_node, preconditioner
from hpcmpq.solvers.search.tabu import search
from tests.solvers.proof.enumerated import enumerated


def searched(shape: Shape, *more: Budget) -> tuple[Compact, np.ndarray, float]:
    problem = make_instance(shape)
    compact = presolve(replace(problem, budgets=(*problem.budgets, *more)))
    assert isinstance(compact, Compact)
    found = search(compact, deadline=np.inf, seed=0, rounds=1)
    assert found is not None
    return compact, found[0], found[1]


def test_no_bound_of_a_widened_start_exceeds_the_enumerated_optimum() -> None:
    num_bounds = num_widened = 0
    for instance, best, compact, choice_G in enumerated(25):
        for steps in (1, 7):
            node = widening.start(compact, preconditioner(compact, choice_G), choice_G, 0, np.inf)
            advance(node, steps, np.inf)
            assert np.isfinite(node.bound)
            bound = compact.original_objective(node.bound)
            assert bound <= best[0] + 1e-12 * sum(map(abs, instance.terms(best[1])))
            num_bounds += 1
        num_widened += int(compact.size_G.max()) > 2 and not compact.tables
    assert num_bounds > 20 and num_widened > 5


def both_starts(compact: Compact, choice_G: np.ndarray) -> tuple[Node, Node]:
    """From the convex form of the whole problem, and widened."""
    scale_P = preconditioner(compact, choice_G)
    convex = make_node(compact, all_pairs(compact), scale_P)
    convex.state = convex_start.start(
        compact, convex.relaxation, convex.projector, convex.state, choice_G, 0, np.inf
    )
    return convex, widening.start(compact, scale_P, choice_G, 0, np.inf)


def test_a_widened_start_is_ahead_of_a_convex_one() -> None:
    compact, choice_G, objective = searched(Shape(40, 7, 0.15, False, 4.0))
    convex, widened = both_starts(compact, choice_G)
    for node in (convex, widened):
        advance(node, 10, np.inf)
    assert objective - widened.bound < 0.25 * (objective - convex.bound)


@pytest.mark.slow
def test_where_curvature_is_strongly_negative_a_cold_start_goes_on() -> None:
    compact, choice_G, objective = searched(Shape(160, 7, 0.05, True, 3.0))
    convex, widened = both_starts(compact, choice_G)
    assert not widened.state.from_convex
    for node in (convex, widened):
        advance(node, 10, np.inf)
    assert objective - widened.bound < 0.5 * (objective - convex.bound)


def narrow_and_wide(compact: Compact, choice_G: np.ndarray) -> tuple[Node, Node, np.ndarray]:
    scale_P = preconditioner(compact, choice_G)
    keep_P = widening.promise(compact, choice_G) < 3
    part = restrict(compact, keep_P)
    assert part is not None
    narrow = make_node(part, all_pairs(part), scale_P[keep_P])
    advance(narrow, 10, np.inf)
    return narrow, make_node(compact, all_pairs(compact), scale_P), keep_P


def lifted(node: Node, choice_G: np.ndarray) -> np.ndarray:
    """v = (1, d x, s) of a choice, with slacks in the node's unit."""
    compact, lift = node.compact, node.relaxation.lift
    v_N = np.zeros(lift.size)
    v_N[0], v_N[1 + lift.column_P[choice_G]] = 1.0, 1.0
    left_C = compact.limit_C - compact.cost_CP[:, choice_G].sum(axis=1)
    v_N[1 + lift.padded :] = left_C / node.relaxation.unit_C
    return v_N * full_scale(lift)


def test_the_carried_multiplier_is_the_narrower_ones_on_its_options() -> None:
    rng = np.random.default_rng(0)
    second = Budget(Cost("time", "s", rng.random(18 * 6)), 9.0)
    compact, choice_G, _ = searched(Shape(18, 6, 0.3, True, 4.0), second)
    narrow, wide, keep_P = narrow_and_wide(compact, choice_G)
    assert wide.relaxation.lift.num_budgets == 2
    of_narrow = np.arange(0, 54, 3) + rng.integers(0, 3, compact.num_groups)
    of_wide = np.flatnonzero(keep_P)[of_narrow]
    v_N, wide_N = lifted(narrow, of_narrow), lifted(wide, of_wide)
    narrow.state.y_NN = np.outer(v_N, v_N)
    assert widening.widen(wide, narrow, keep_P)
    np.testing.assert_allclose(v_N @ narrow.state.z_NN @ v_N, wide_N @ wide.state.z_NN @ wide_N, rtol=1e-9)
    np.testing.assert_allclose(wide.state.y_NN, np.outer(wide_N, wide_N), atol=1e-12)


def test_other_budgets_and_joint_tables_leave_the_convex_form() -> None:
    compact, choice_G, _ = searched(Shape(18, 4, 0.3, False, 3.0))
    narrow, wide, keep_P = narrow_and_wide(compact, choice_G)
    free = replace(compact, cost_CP=compact.cost_CP[:0], limit_C=compact.limit_C[:0])
    wide = make_node(free, all_pairs(free), np.ones(free.num_options))
    before = wide.state.z_NN.copy()
    assert not widening.widen(wide, narrow, keep_P)
    assert (wide.state.z_NN == before).all()
    group_P = np.repeat(np.arange(4), 3)
    table = CostTerm((0, 2), np.arange(9.0).reshape(3, 3) ** 2)
    budget = Budget(Cost("time", "s", np.zeros(12), (table,)), 20.0)
    joint = presolve(Problem(np.arange(12.0), np.zeros((12, 12)), group_P, (budget,)))
    assert isinstance(joint, Compact) and joint.tables
    node = widening.start(joint, np.ones(joint.num_options), joint.offset_H[:-1], 0, np.inf)
    assert node.state.steps == 0 and node.state.falling
