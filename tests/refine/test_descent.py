"""True-loss descent on a known function: it improves, keeps budgets, stops, and believes no noise."""

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.refine.descent import TrueLoss, descend, is_better, local_problem, neighbour_secants
from hpcmpq.solvers import make_solver

NUM_GROUPS, NUM_FORMATS = 6, 4


def make_problem(limit: float = 9.0) -> Problem:
    """Six groups of four formats that cost 0..3; losses fall with the format."""
    random = np.random.default_rng(0)
    position_P = np.tile(np.arange(NUM_FORMATS), NUM_GROUPS)
    linear_P = np.repeat(random.lognormal(0, 1, NUM_GROUPS), NUM_FORMATS) * 4.0**-position_P
    phi = random.normal(size=(8, len(linear_P))) * np.sqrt(linear_P)
    group_P = np.repeat(np.arange(NUM_GROUPS), NUM_FORMATS)
    quad_PP = phi.T @ phi / 8
    quad_PP[group_P[:, None] == group_P[None, :]] = 0
    cost = Cost("size", "bits", position_P.astype(float))
    return Problem(linear_P, quad_PP, group_P, (Budget(cost, limit),))


def exact_loss(problem: Problem, spread: float = 0.0) -> TrueLoss:
    noise_N = np.random.default_rng(1).normal(size=32) * spread
    return TrueLoss(lambda choice_G: problem.objective(choice_G) + noise_N, 200, lambda done, total: None)


def test_secants_are_measured_differences_of_neighbours():
    problem = make_problem()
    current_G = problem.offset_G + 1
    candidate_P, secant_P = neighbour_secants(problem, current_G, exact_loss(problem))
    assert candidate_P.reshape(NUM_GROUPS, -1).tolist() == [[True, True, True, False]] * NUM_GROUPS
    for option in np.flatnonzero(candidate_P):
        moved_G = current_G.copy()
        moved_G[problem.group_P[option]] = option
        expected = problem.objective(moved_G) - problem.objective(current_G)
        assert secant_P[option] == pytest.approx(expected, abs=1e-12)


def test_the_local_problem_predicts_a_quadratic_exactly():
    problem = make_problem()
    current_G = problem.offset_G + 1
    candidate_P, secant_P = neighbour_secants(problem, current_G, exact_loss(problem))
    local = local_problem(problem, current_G, candidate_P, secant_P, radius=3)
    random = np.random.default_rng(2)
    for _ in range(50):
        moved_G = current_G + random.integers(-1, 2, NUM_GROUPS)
        change = problem.objective(moved_G) - problem.objective(current_G)
        assert local.objective(moved_G) == pytest.approx(change, abs=1e-12)
        num_moved = int((moved_G != current_G).sum())
        assert local.budgets[-1].cost.value(moved_G, problem.offset_G) == num_moved


def test_descent_reaches_the_optimum_of_a_quadratic_within_the_budget():
    problem = make_problem()
    best = make_solver("exhaustive").solve(problem, time_limit_s=20, seed=0)
    start_G = problem.offset_G + 1
    found_G, history = descend(problem, start_G, [], exact_loss(problem), make_solver("quadratic"), seed=0)
    assert problem.is_feasible(found_G)
    assert problem.objective(found_G) < problem.objective(start_G)
    assert problem.objective(found_G) == pytest.approx(best.objective, rel=0.1)
    assert history[0]["accepted"]
    assert history[0]["measured"] == pytest.approx(history[0]["predicted"], rel=1e-6)


def test_evaluations_are_bounded_and_never_repeated():
    problem, seen = make_problem(), []

    def measure(choice_G):
        seen.append(choice_G.tobytes())
        return np.full(4, problem.objective(choice_G))

    true_loss = TrueLoss(measure, 9, lambda done, total: None)
    descend(problem, problem.offset_G + 1, [], true_loss, make_solver("quadratic"), seed=0)
    assert len(seen) == len(set(seen)) <= 9


def test_a_better_other_start_is_taken():
    problem = make_problem()
    best = make_solver("exhaustive").solve(problem, time_limit_s=20, seed=0)
    worst_G = problem.offset_G.copy()
    true_loss = TrueLoss(exact_loss(problem).measure, 2, lambda done, total: None)
    found_G, _ = descend(problem, worst_G, [best.choice_G], true_loss, make_solver("quadratic"), seed=0)
    assert found_G.tolist() == best.choice_G.tolist()


def test_noise_is_no_improvement():
    random = np.random.default_rng(0)
    old_N = random.normal(1.0, 1.0, 64)
    assert is_better(old_N - 0.1, old_N)
    assert not is_better(old_N + 0.1, old_N)
    noise_N = random.normal(0.0, 1.0, 64)
    noise_N -= noise_N.mean() + 0.5 * noise_N.std(ddof=1) / 8  # half a standard error better
    assert not is_better(old_N + noise_N, old_N)
