"""Knapsacks of values that span many orders of magnitude, proofs that a known choice refutes, and short time limits.

Axis letters: P options, G groups.
"""

import itertools
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, CostTerm, Problem, Termination
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.linear import LinearSolver
from hpcmpq.solvers.search.anneal import anneal
from hpcmpq.solvers.search.feasible import feasible_choice, lagrangian_floor


def test_an_optimum_that_presolve_of_or_tools_misses() -> None:
    # OR-Tools 9.15 proves 24.9 where 8.4 is feasible, unless it is told not to compare constraints (its issue 5293).
    linear_P = np.array([122.507917, 6.90612814, 16.4885719, 334.544629, 1.71804511e-4, 6.51599871])
    linear_P = np.append(
        linear_P, [1.50157719e-3, 4.71956640e-3, 7.54425620e-3, 0.104714652, 2.15846892, 3021.59071]
    )
    group_P = np.repeat(np.arange(3), [2, 6, 4])
    cost_P = np.array([0, 0.0531658, 0, 0.06252184, 0.12504368, 0.18756552, 0.25008737, 0.31260921])
    cost_P = np.append(cost_P, [0, 0.11509991, 0.23019983, 0.63422499])
    table = np.array(
        [[np.inf, 0.03627436], [0.06618694, 0.13946853], [0.00297516, 0.0415429], [0, 0.00453843]]
    )
    cost = Cost("time", "s", cost_P, (CostTerm((2, 0), table),))
    problem = Problem(linear_P, np.zeros((12, 12)), group_P, (Budget(cost, 0.75926867),))
    answer = make_solver("diagonal").solve(problem, time_limit_s=10.0, seed=0)
    every = [np.array(choice) for choice in itertools.product(range(2), range(2, 8), range(8, 12))]
    best = min((c for c in every if problem.is_feasible(c)), key=problem.objective)
    assert answer.choice_G is not None and answer.choice_G.tolist() == best.tolist()
    assert answer.termination is Termination.OPTIMAL


def knapsack(num_groups: int, limit: float) -> Problem:
    """Losses that fall sixteenfold per bit from 2 to 8 bits, one budget on the mean bits."""
    rng = np.random.default_rng(1)
    group_P, bits_P = np.repeat(np.arange(num_groups), 7), np.tile(np.arange(2.0, 9.0), num_groups)
    linear_P = np.exp(rng.normal(0.0, 2.0, num_groups))[group_P] * 16.0 ** (2.0 - bits_P)
    size_G = rng.integers(1, 100, num_groups)
    cost = Cost("weight_bits", "bits", bits_P * size_G[group_P] / size_G.sum())
    quad_PP = np.broadcast_to(0.0, (len(group_P), len(group_P)))
    return Problem(linear_P, quad_PP, group_P, (Budget(cost, limit),))


@pytest.mark.parametrize("name", ["diagonal", "quadratic"])
@pytest.mark.parametrize("limit", [3.0, 7.5])
def test_large_losses_do_not_blur_small_ones(name: str, limit: float) -> None:
    # At 7.5 bits the optimum is a millionth of the losses at 2 bits, which no choice within reach has.
    answer = make_solver(name).solve(knapsack(120, limit), time_limit_s=20.0, seed=0)
    assert answer.termination is Termination.OPTIMAL


@pytest.mark.parametrize("seed", range(20))
def test_the_floor_holds_for_every_choice_and_leaves_out_no_better_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.random((3, 2))
    cost = Cost("time", "s", rng.standard_normal(8), (CostTerm((0, 2), table),))
    group_P = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    every = [np.array(c) for c in itertools.product(range(3), range(3, 6), range(6, 8))]
    offset_G = np.array([0, 3, 6])
    limit = float(np.quantile([cost.value(c, offset_G) for c in every], 0.5))
    problem = Problem(rng.standard_normal(8), np.zeros((8, 8)), group_P, (Budget(cost, limit),))
    compact = presolve(problem)
    assert isinstance(compact, Compact)
    value_P = rng.standard_normal(compact.num_options) * 10.0 ** rng.integers(-9, 9, compact.num_options)
    floor = lagrangian_floor(compact, value_P)
    known_G = feasible_choice(compact, value_P, None, seed, float("inf"))
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    feasible = [c for c in map(np.array, itertools.product(*ranges)) if compact.feasible(c)]
    assert known_G is not None and compact.feasible(known_G)
    alive_P = floor.alive(float(value_P[known_G].sum()))
    size = float(np.abs(value_P).max())
    for choice_G in feasible:
        value = float(value_P[choice_G].sum())
        assert floor.value + floor.rise_P[choice_G].sum() <= value + 1e-12 * size
        assert alive_P[choice_G].all() or value >= value_P[known_G].sum() - 1e-12 * size


@pytest.mark.parametrize("form", ["ip", "lp"])
def test_a_program_too_large_for_its_time_still_answers(form: str) -> None:
    rng = np.random.default_rng(0)
    problem = knapsack(60, 3.5)
    quad_PP = rng.standard_normal((420, 420)) * 0.01
    quad_PP = quad_PP + quad_PP.T
    quad_PP[problem.group_P[:, None] == problem.group_P] = 0.0
    problem = Problem(problem.linear_P, quad_PP, problem.group_P, problem.budgets)
    answer = LinearSolver(form=form).solve(problem, time_limit_s=0.3, seed=0)
    assert answer.choice_G is not None and problem.is_feasible(answer.choice_G)
    assert answer.bound is not None and answer.bound <= problem.objective(answer.choice_G)


@pytest.mark.parametrize("name", ["diagonal", "quadratic"])
def test_an_optimum_of_zero_is_proven(name: str) -> None:
    # c of 1, -3 and 3, 1: within two units of cost only 3 - 3 = 0 and 1 + 1, 1 + 3 are reached.
    cost = Cost("size", "bytes", np.array([1.0, 2.0, 0.0, 1.0]))
    problem = Problem(
        np.array([1.0, -3.0, 3.0, 1.0]), np.zeros((4, 4)), np.array([0, 0, 1, 1]), (Budget(cost, 2.0),)
    )
    answer = make_solver(name).solve(problem, time_limit_s=10.0, seed=0)
    assert answer.choice_G is not None and answer.choice_G.tolist() == [1, 2]
    assert answer.termination is Termination.OPTIMAL and answer.gap == 0.0


def test_an_interrupt_ends_cp_sat() -> None:
    rng = np.random.default_rng(0)
    problem = knapsack(14, 3.5)  # a gap of more than 1 is left after 12 s
    quad_PP = rng.standard_normal((98, 98))
    quad_PP = quad_PP + quad_PP.T
    quad_PP[problem.group_P[:, None] == problem.group_P] = 0.0
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which test workers ignore
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            make_solver("linear").solve(replace(problem, quad_PP=quad_PP), time_limit_s=30.0, seed=0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_prices_stay_finite_where_no_choice_fits() -> None:
    compact = presolve(knapsack(5, 3.5))
    assert isinstance(compact, Compact)
    hopeless = replace(compact, limit_C=np.array([-1.0]))
    with np.errstate(over="raise", invalid="raise"):
        assert anneal(hopeless, hopeless.offset_H[:-1], 16000, np.random.default_rng(0), np.inf) is None


@pytest.mark.parametrize("seed", range(40))
def test_the_smallest_reachable_value_is_that_of_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = [np.array(c) for c in itertools.product(range(3), range(3, 6), range(6, 8))]
    budgets = []
    for name in ("size", "time"):
        cost_P = rng.random(8)
        cost_P[rng.integers(8)] = np.inf if rng.random() < 0.5 else 1.0
        table = np.where(rng.random((3, 3)) < 0.2, np.inf, rng.random((3, 3)))
        cost = Cost(name, "units", cost_P, (CostTerm((0, 1), table),))
        budgets.append(Budget(cost, float(rng.uniform(0.8, 1.6))))
    problem = Problem(np.zeros(8), np.zeros((8, 8)), np.repeat(np.arange(3), [3, 3, 2]), tuple(budgets))
    answer = make_solver("diagonal").solve(problem, time_limit_s=10.0, seed=0)
    if any(problem.is_feasible(choice_G) for choice_G in every):
        assert answer.termination is Termination.OPTIMAL
        return
    assert answer.termination is Termination.INFEASIBLE
    words = answer.detail.split()
    if words[0] != "budget":
        return
    budget, others = next((b, [o for o in budgets if o is not b]) for b in budgets if b.cost.name == words[1])
    values = [[b.cost.value(c, problem.offset_G) for c in every] for b in (budget, *others)]
    joint = "other budgets" in answer.detail
    least = min(v for v, o in zip(*values, strict=True) if o <= (others[0].limit if joint else 1e300))
    assert float(words[words.index("reachable") + 1]) == pytest.approx(least)
    assert least > budget.limit
