"""True-loss descent on a known function: it improves, keeps budgets, stops, and believes no noise."""

from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.calibrate.reduce import Reduction
from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.refine.descent import (
    LUCK,
    Measurements,
    check_held_out,
    descend,
    is_better,
    local_answers,
    neighbours,
    trust_radii,
)
from hpcmpq.refine.neighbouring import local_problem, local_quadratic
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


def exact_expansion(
    problem: Problem, current_G: np.ndarray, options_R: np.ndarray, stderr: float = 0.0
) -> Reduction:
    """By differences of the objective: of one move, and of two moves together."""

    def moved(*options: int) -> float:
        choice_G = current_G.copy()
        choice_G[problem.group_P[list(options)]] = options
        return problem.objective(choice_G) - problem.objective(current_G)

    linear_R = np.array([moved(p) for p in options_R])
    quad_RR = np.array(
        [
            [
                0.0 if problem.group_P[p] == problem.group_P[q] else moved(p, q) - moved(p) - moved(q)
                for q in options_R
            ]
            for p in options_R
        ]
    )
    size = len(options_R)
    names = tuple(f"group{problem.group_P[p]}" for p in options_R)
    apart_RR = np.array(names)[:, None] != np.array(names)
    model = QuadraticModel(
        names, tuple("abcd"[p % 4] for p in options_R), linear_R, quad_RR, np.zeros(size), stderr * apart_RR,
        0.0, "kl", "secant", 8, np.zeros((0, size)), np.zeros((0, size, size)),
    )  # fmt: skip
    return Reduction(model, np.ones(size), 0.0)


def measurements(problem: Problem, most: int = 200, noise=None, seen=None, looked=None) -> Measurements:
    def around(current_G, options_R, on_unit):
        on_unit(1, 1)
        if seen is not None:
            seen.extend((current_G.tobytes(), int(p)) for p in options_R)
        return exact_expansion(problem, current_G, options_R)

    def on_calibration(choices):
        if seen is not None:
            seen.extend(choice_G.tobytes() for choice_G in choices)
        return [np.full(32, problem.objective(c)) for c in choices]

    def on_held_out(choices):
        if looked is not None:
            looked.extend(problem.objective(c) for c in choices)
        return [problem.objective(c) + (np.zeros(32) if noise is None else noise(c)) for c in choices]

    return Measurements(around, on_calibration, on_held_out, most, lambda done, total: None)


def run(problem: Problem, start_G: np.ndarray, measured: Measurements):
    (start_N,) = measured.on_held_out([start_G])
    solver = make_solver("quadratic")
    return descend(problem, start_G, start_N, measured, solver, 0.0, seed=0)


def test_neighbours_are_one_format_away_and_allowed():
    problem = make_problem()
    found = neighbours(problem, problem.offset_G + np.array([0, 1, 2, 3, 0, 1]))
    expected = {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (4, 1), (5, 0), (5, 2)}
    assert {(int(p) // NUM_FORMATS, int(p) % NUM_FORMATS) for p in found} == expected
    assert len(found) == len(expected)


def test_the_local_problem_predicts_a_quadratic_exactly():
    problem = make_problem()
    current_G = problem.offset_G + 1
    options_R = np.sort(neighbours(problem, current_G))
    expansion = exact_expansion(problem, current_G, options_R)
    linear_P, quad_PP = local_quadratic(problem, current_G, options_R, expansion, 0.0)
    local = local_problem(problem, current_G, options_R, linear_P, quad_PP, radius=3)
    random = np.random.default_rng(2)
    for _ in range(50):
        moved_G = current_G + random.integers(-1, 2, NUM_GROUPS)
        change = problem.objective(moved_G) - problem.objective(current_G)
        assert local.objective(moved_G) == pytest.approx(change, abs=1e-12)
        num_moved = int((moved_G != current_G).sum())
        assert local.budgets[-1].cost.value(moved_G, problem.offset_G) == num_moved


def test_noisy_local_cross_terms_are_shrunk():
    problem = make_problem()
    current_G = problem.offset_G + 1
    options_R = np.sort(neighbours(problem, current_G))
    exact = exact_expansion(problem, current_G, options_R)
    noisy = exact_expansion(problem, current_G, options_R, stderr=3.0)
    _, as_measured = local_quadratic(problem, current_G, options_R, exact, "auto")
    _, quad_PP = local_quadratic(problem, current_G, options_R, noisy, "auto")
    assert np.abs(quad_PP).max() < 0.2 * np.abs(as_measured).max()


@pytest.mark.slow
def test_what_the_global_quadratic_knows_better_is_not_moved_by_noise():
    """At the optimum of an accurate quadratic, noisy measurements of single moves promise falls that are none."""
    problem = make_problem()
    best_G = make_solver("exhaustive").solve(problem, time_limit_s=20, seed=0).choice_G
    options_R = np.sort(neighbours(problem, best_G))
    exact = exact_expansion(problem, best_G, options_R)
    spread = float(np.abs(exact.model.linear_P).max())
    promised = {"as measured": 0.0, "weighed": 0.0}
    for seed in (0, 3):
        noise_R = np.random.default_rng(seed).normal(size=len(options_R)) * spread
        believed = replace(exact.model, linear_P=exact.model.linear_P + noise_R)
        weighed = replace(believed, stderr_linear_P=np.full(len(options_R), spread))
        for name, model in (("as measured", believed), ("weighed", weighed)):
            expansion = replace(exact, model=model)
            answers = local_answers(
                problem, best_G, options_R, expansion, make_solver("quadratic"), 0.0, seed=0
            )
            promised[name] -= min((change for _, change in answers), default=0.0)
    assert promised["as measured"] > 4 * spread
    assert promised["weighed"] < 0.1 * promised["as measured"]


@pytest.mark.slow
def test_descent_reaches_the_optimum_of_a_quadratic_within_the_budget():
    problem = make_problem()
    best = make_solver("exhaustive").solve(problem, time_limit_s=20, seed=0)
    start_G = problem.offset_G + 1
    found = run(problem, start_G, measurements(problem))
    assert problem.is_feasible(found.choice_G)
    assert problem.objective(found.choice_G) == pytest.approx(best.objective, rel=1e-9)
    assert found.loss_N.mean() == pytest.approx(problem.objective(found.choice_G), rel=1e-9)
    accepted = [move for move in found.history if move["accepted"]]
    assert accepted and accepted[0]["measured"] == pytest.approx(accepted[0]["predicted"], rel=1e-6)


def test_evaluations_are_bounded_and_never_repeated():
    problem, seen = make_problem(), []
    found = run(problem, problem.offset_G + 1, measurements(problem, most=11, seen=seen))
    assert len(seen) == len(set(seen)) == found.evaluations <= 11


def test_no_evaluations_leave_the_start():
    problem = make_problem()
    found = run(problem, problem.offset_G + 1, measurements(problem, most=1))
    assert found.choice_G.tolist() == (problem.offset_G + 1).tolist()
    assert found.evaluations == 0 and found.history == []


def test_answers_that_held_out_samples_do_not_confirm_are_not_taken():
    problem = make_problem()
    start_G = problem.offset_G + 1

    def noise(choice_G):
        return np.zeros(32) if (choice_G == start_G).all() else np.random.default_rng(0).normal(1.0, 50.0, 32)

    looked = []
    found = run(problem, start_G, measurements(problem, noise=noise, looked=looked))
    assert found.choice_G.tolist() == start_G.tolist()
    assert found.history and not any(move["accepted"] for move in found.history)
    assert looked[1:] == sorted(looked[1:])  # in order of the losses on calibration samples


@pytest.mark.slow
def test_held_out_samples_look_no_further_than_the_first_that_they_confirm():
    problem, looked = make_problem(), []
    found = run(problem, problem.offset_G + 1, measurements(problem, looked=looked))
    assert len(looked) == 1 + len(found.history)  # the start, then each look once
    assert found.history[0]["accepted"]
    for move, following in zip(found.history, found.history[1:], strict=False):
        assert following["round"] == move["round"] + move["accepted"]


def test_noise_is_no_improvement_and_less_so_at_later_looks():
    random = np.random.default_rng(0)
    old_N = random.normal(1.0, 1.0, 64)
    assert is_better(old_N - 0.1, old_N, look=1)
    assert not is_better(old_N + 0.1, old_N, look=1)
    noise_N = random.normal(0.0, 1.0, 64)
    noise_N -= noise_N.mean()
    stderr = noise_N.std(ddof=1) / 8
    assert not is_better(old_N + noise_N - 0.5 * stderr, old_N, look=1)
    assert is_better(old_N + noise_N - 1.5 * stderr, old_N, look=1)
    assert not is_better(old_N + noise_N - 1.5 * stderr, old_N, look=2)


def test_pure_noise_is_taken_as_rarely_as_said():
    """Four looks at assignments that are all alike: at most LUCK of the rounds take one."""
    random = np.random.default_rng(0)
    taken = 0
    for _ in range(2000):
        old_N = random.normal(size=32)
        taken += any(is_better(random.normal(size=32), old_N, look) for look in range(1, 5))
    assert taken / 2000 < LUCK + 0.02


@pytest.mark.parametrize("num_samples", [2, 3, 6])
def test_few_samples_take_pure_noise_no_more_often(num_samples: int):
    random = np.random.default_rng(0)
    taken = 0
    for _ in range(3000):
        old_N = random.normal(size=num_samples)
        taken += any(is_better(random.normal(size=num_samples), old_N, look) for look in range(1, 5))
    assert taken / 3000 < LUCK + 0.02


def test_one_sample_says_nothing_of_chance():
    assert not is_better(np.array([0.5]), np.array([1.0]), look=1)


def test_trust_regions_end_at_one_move():
    assert trust_radii(1) == [1]
    assert trust_radii(120) == [120, 40, 13, 4, 1]


def test_one_held_out_sample_is_told(caplog):
    for num_held_out in (2, 1):
        assert not caplog.text
        check_held_out(num_held_out, "refine")
    assert "refine measures, but keeps no change" in caplog.text
    assert "set calibration.held_out to 2 or more" in caplog.text
