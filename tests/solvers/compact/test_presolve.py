"""What presolve leaves out can never matter, and what CP-SAT is given in integers means what the numbers meant."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, CostTerm, Problem
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import cheapest_completion, presolve
from hpcmpq.solvers.compact.ties import merge_ties
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.solvers.cp_sat.integer_costs import integer_costs

GROUP_P = np.repeat(np.arange(3), 3)


def problem(seed: int, limit: float) -> Problem:
    """Three groups of three options, one budget with a joint table over two of them."""
    rng = np.random.default_rng(seed)
    cost = Cost("time", "s", rng.random(9), (CostTerm((0, 2), rng.random((3, 3))),))
    return Problem(rng.standard_normal(9), np.zeros((9, 9)), GROUP_P, (Budget(cost, limit),))


def choices(made: Problem) -> list[np.ndarray]:
    return [made.offset_G + np.array(place) for place in itertools.product(range(3), repeat=3)]


@pytest.mark.parametrize("limit", [1.2, 1.8, 2.4])
@pytest.mark.parametrize("seed", range(5))
def test_the_same_choices_are_feasible_and_cost_the_same_to_a_constant(seed: int, limit: float):
    made = problem(seed, limit)
    compact = presolve(made)
    feasible = {tuple(choice_G.tolist()) for choice_G in choices(made) if made.is_feasible(choice_G)}
    if isinstance(compact, str):
        assert not feasible
        return
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    kept = [np.array(own, dtype=np.int64) for own in itertools.product(*ranges)]
    kept = [choice_G for choice_G in kept if compact.feasible(choice_G)]
    assert {tuple(compact.expand(choice_G).tolist()) for choice_G in kept} == feasible
    for choice_G in kept:
        found = compact.original_objective(compact.objective(choice_G))
        assert found == pytest.approx(made.objective(compact.expand(choice_G)))


def test_a_budget_that_only_a_table_can_break_is_kept():
    # Costs 0, 1, 1 and 2 of the four choices come from the table alone: two dear options do not fit in 1.5.
    table = np.array([[0.0, 1.0], [1.0, 2.0]])
    budget = Budget(Cost("time", "s", np.zeros(4), (CostTerm((0, 1), table),)), 1.5)
    compact = presolve(Problem(np.zeros(4), np.zeros((4, 4)), np.array([0, 0, 1, 1]), (budget,)))
    assert isinstance(compact, Compact)
    assert len(compact.limit_C) == 1
    assert not compact.feasible(np.array([1, 3]))


def test_the_cheapest_completion_is_a_lower_bound_and_exact_without_tables():
    compact = presolve(problem(0, 2.0))
    assert isinstance(compact, Compact)
    least_CP, least_C = cheapest_completion(compact)
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    every = [np.array(own) for own in itertools.product(*ranges)]
    for p in range(compact.num_options):
        cost = min(compact.costs(choice_G)[0] for choice_G in every if p in choice_G)
        assert least_CP[0, p] <= cost + 1e-12
    assert least_C[0] <= least_CP[0].min() + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_of_cp_sat_is_the_optimum_less_its_rounding(seed: int):
    compact = presolve(problem(seed, 2.0))
    assert isinstance(compact, Compact)
    answer = solve_linear(compact, compact.linear_P, time_limit_s=10.0, seed=0)
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    every = [np.array(own) for own in itertools.product(*ranges)]
    best = min(compact.linear_P[c].sum() for c in every if compact.feasible(c))
    assert answer.status == "optimal"
    assert best - 1e-9 <= answer.bound <= best


def test_integer_costs_err_on_the_side_that_is_asked_for():
    cost = np.random.default_rng(0).random(5)
    steps, limit = integer_costs(cost, float(cost.sum()), 5, round_up=False)
    assert steps.sum() <= limit  # what fits still fits
    steps, limit = integer_costs(cost, float(cost.sum()) - 1e-13, 5, round_up=True)
    assert steps.sum() > limit  # what does not fit never does


def test_integer_costs_allow_for_every_cost_that_a_choice_adds_up():
    # Multiples of 1 to 1e-11: a group and twenty cells of tables together are off by 2e-10 of a limit of 21.
    cost = np.full(21, 1.0 - 1e-11)
    cost[0] = 1.0
    steps, limit = integer_costs(cost, float(cost.sum()) - 1e-9, 21, round_up=True)
    assert steps.sum() > limit
    cost[1:] = 1.0 - 9e-11
    cost = np.append(cost, [1.0, 2.0])
    steps, limit = integer_costs(cost, float(cost[:21].sum()), 21, round_up=False)
    assert steps[:21].sum() <= limit


def test_tables_count_among_the_summands_of_a_budget():
    # One group of costs 0 and 1, thirty tables of 1 − 9e-11: the limit is what the dearer choice costs.
    group_P, cell = np.array([0, 0, 1, 1]), 1.0 - 9e-11
    terms = tuple(CostTerm((0, 1), np.array([[0.0, 0.0], [0.0, cell]])) for _ in range(30))
    cost = Cost("time", "s", np.array([0.0, 1.0, 0.0, 1.0]), terms)
    dearest_G = np.array([1, 3])
    value = cost.value(dearest_G, np.array([0, 2]))
    loss_P = np.array([1.0, 0.0, 1.0, 0.0])
    compact = merge_ties(Problem(loss_P, np.zeros((4, 4)), group_P, (Budget(cost, value),)))
    assert isinstance(compact, Compact)
    exact = replace(compact, limit_C=np.array([value]))  # without the tolerance that hides most of this
    answer = solve_linear(exact, exact.linear_P, time_limit_s=10.0, seed=0, hint_G=None)
    assert answer.status == "optimal" and answer.bound <= 0.0
    assert answer.choice_G is not None and answer.choice_G.tolist() == dearest_G.tolist()


def test_no_objective_stays_a_view_where_groups_are_tied_and_options_forbidden():
    # 12,000 options: a matrix of them would take more than a gigabyte.
    linear_P, group_P = np.random.default_rng(0).random(12000), np.repeat(np.arange(4000), 3)
    allowed_P = np.ones(12000, bool)
    allowed_P[1] = False
    ties = tuple((i, i + 1) for i in range(0, 4000, 2))
    made = Problem(linear_P, np.broadcast_to(0.0, (12000, 12000)), group_P, (), allowed_P, ties)
    compact = merge_ties(made)
    assert isinstance(compact, Compact)
    assert compact.quad_PP.shape == (5999, 5999) and compact.quad_PP.strides == (0, 0)
    assert compact.quad_PP[0, 0] == 0.0
    np.testing.assert_allclose(compact.linear_P[:2], [linear_P[0] + linear_P[3], linear_P[2] + linear_P[5]])
