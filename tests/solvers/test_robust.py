"""Mean + k·std over batches against enumeration."""

import itertools
import time

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.solvers.robust import robust_value, solve_robust
from hpcmpq.solvers.search.robust_descent import descend

pytestmark = pytest.mark.slow


def batches(seed: int) -> tuple[Problem, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group_P = np.repeat(np.arange(4), 3)
    mean_PP = rng.standard_normal((12, 12))
    quad_BPP = mean_PP + 0.5 * rng.standard_normal((5, 12, 12))
    quad_BPP = quad_BPP + quad_BPP.transpose(0, 2, 1)
    quad_BPP[:, group_P[:, None] == group_P[None, :]] = 0.0
    linear_BP = rng.standard_normal(12) + 0.5 * rng.standard_normal((5, 12))
    cost = Cost("size", "bytes", rng.random(12))
    problem = Problem(
        linear_BP.mean(axis=0), quad_BPP.mean(axis=0), group_P, (Budget(cost, 2.2),), constant=0.3
    )
    return problem, linear_BP, quad_BPP


def enumerated(problem: Problem, linear_BP: np.ndarray, quad_BPP: np.ndarray, deviations: float) -> float:
    values = []
    for position in itertools.product(range(3), repeat=4):
        choice_G = problem.offset_G + np.array(position)
        if problem.is_feasible(choice_G):
            values.append(robust_value(linear_BP, quad_BPP, choice_G, deviations))
    return problem.constant + min(values)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("deviations", [0.5, 2.0])
def test_bound_is_valid_and_the_choice_near_the_optimum(seed: int, deviations: float) -> None:
    problem, linear_BP, quad_BPP = batches(seed)
    answer = solve_robust(problem, linear_BP, quad_BPP, deviations=deviations, time_limit_s=30, seed=0)
    best = enumerated(problem, linear_BP, quad_BPP, deviations)
    assert answer.bound <= best + 1e-9
    value = problem.constant + robust_value(linear_BP, quad_BPP, answer.choice_G, deviations)
    assert answer.objective == pytest.approx(value)
    assert best - 1e-9 <= answer.objective
    plain = solve_robust(problem, linear_BP, quad_BPP, deviations=0.0, time_limit_s=30, seed=0)
    unprotected = problem.constant + robust_value(linear_BP, quad_BPP, plain.choice_G, deviations)
    assert answer.objective <= unprotected + 1e-9


def test_without_deviations_it_is_the_mean_problem() -> None:
    problem, linear_BP, quad_BPP = batches(3)
    answer = solve_robust(problem, linear_BP, quad_BPP, deviations=0.0, time_limit_s=30, seed=0)
    assert answer.objective == pytest.approx(enumerated(problem, linear_BP, quad_BPP, 0.0))
    assert answer.gap <= 1e-6


def test_one_round_bounds_by_the_mean_problem() -> None:
    problem, linear_BP, quad_BPP = batches(3)
    answer = solve_robust(problem, linear_BP, quad_BPP, deviations=2.0, time_limit_s=30, seed=0, rounds=1)
    mean = enumerated(problem, linear_BP, quad_BPP, 0.0)
    assert answer.objective > mean + 0.1
    assert answer.bound == pytest.approx(mean, abs=1e-5)


def test_one_batch_has_no_deviation() -> None:
    problem, linear_BP, quad_BPP = batches(0)
    with pytest.raises(ValueError, match="B ≥ 2|batches"):
        solve_robust(problem, linear_BP[:1], quad_BPP[:1], deviations=1.0, time_limit_s=1, seed=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("row_elements", [1, 2**24])
def test_descent_ends_where_no_move_of_one_or_two_groups_lowers_the_objective(
    seed: int, row_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcmpq.solvers.search.robust_descent.ROW_ELEMENTS", row_elements)
    problem, linear_BP, quad_BPP = batches(seed)
    choices = [problem.offset_G + np.array(position) for position in itertools.product(range(3), repeat=4)]
    feasible = [choice_G for choice_G in choices if problem.is_feasible(choice_G)]
    for start_G in feasible[::7]:
        end_G = descend(problem, linear_BP, quad_BPP, start_G, 2.0, time.perf_counter() + 30)
        assert problem.is_feasible(end_G)
        near = [choice_G for choice_G in feasible if (choice_G != end_G).sum() <= 2]
        least = min(robust_value(linear_BP, quad_BPP, choice_G, 2.0) for choice_G in near)
        assert robust_value(linear_BP, quad_BPP, end_G, 2.0) == pytest.approx(least)
