"""The portfolio: what is measured beside the solver's answer, and that the lowest measured loss wins.

True losses are quadratics that are known here; the solver sees estimates with noise.
"""

from dataclasses import replace

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.refine.portfolio import (
    AS_MEASURED,
    DIAGONAL,
    NARROW,
    SOLVED,
    describe_candidates,
    interactions,
    lowest,
    make_candidates,
    narrow_options,
    paired,
    widest_uniforms,
)
from hpcmpq.settings import SolverConfig
from hpcmpq.solvers import make_solver
from hpcmpq.space import Group, Member, SearchSpace

NUM_GROUPS, BITS = 12, (2, 3, 4)
SETTINGS = SolverConfig(time_limit_s=2.0)
NARROW_P = np.tile(np.array(BITS) == 2, NUM_GROUPS)


def true_quadratic(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c and H of a convex loss with weak interactions, and the group of each option."""
    error_P = np.tile(4.0 ** -np.array(BITS), NUM_GROUPS) * np.repeat(random.lognormal(0, 0.8, NUM_GROUPS), 3)
    group_P = np.repeat(np.arange(NUM_GROUPS), len(BITS))
    phi = random.normal(size=(40, len(error_P))) * np.sqrt(error_P) * 0.2
    quad_PP = phi.T @ phi / 40 * 2
    quad_PP[group_P[:, None] == group_P[None, :]] = 0.0
    return error_P, quad_PP, group_P


def noisy(quad_PP: np.ndarray, linear_P: np.ndarray, group_P: np.ndarray, noise: float, random) -> np.ndarray:
    error_PP = random.normal(size=quad_PP.shape) * np.sqrt(np.outer(linear_P, linear_P)) * noise
    error_PP = np.triu(error_PP, 1)
    return np.where(group_P[:, None] == group_P[None, :], 0.0, quad_PP + error_PP + error_PP.T)


def problem_for(linear_P: np.ndarray, quad_PP: np.ndarray, group_P: np.ndarray, limit: float) -> Problem:
    bits_P = np.tile(np.array(BITS, dtype=float), NUM_GROUPS) / NUM_GROUPS
    return Problem(linear_P, quad_PP, group_P, (Budget(Cost("weight_bits", "bits", bits_P), limit),))


def dropping(problem: Problem, settings: SolverConfig) -> Problem:
    zero = np.zeros_like(problem.quad_PP)
    return replace(problem, quad_PP=zero) if settings.drop_cross_terms else problem


def uniforms() -> dict[str, np.ndarray]:
    return {f"int{bits}": np.arange(NUM_GROUPS) * 3 + place for place, bits in enumerate(BITS)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_chosen_one_is_never_worse_than_the_simple_ones_where_measurements_are_exact(seed: int):
    """With noise of 0.3 in correlations the solver's own answer is often worse than without cross terms."""
    random = np.random.default_rng(seed)
    linear_P, quad_PP, group_P = true_quadratic(random)
    truth = problem_for(linear_P, quad_PP, group_P, 3.0)
    seen = problem_for(linear_P, noisy(quad_PP, linear_P, group_P, 0.3, random), group_P, 3.0)
    solved = make_solver("quadratic").solve(seen, time_limit_s=2.0, seed=0)
    assert solved.choice_G is not None
    found = make_candidates(solved.choice_G, SETTINGS, lambda s: dropping(seen, s), uniforms(), NARROW_P)
    losses = [np.full(8, truth.objective(candidate.choice_G)) for candidate in found]
    best = losses[lowest(losses)].mean()
    diagonal = make_solver("quadratic").solve(
        replace(seen, quad_PP=np.zeros_like(quad_PP)), time_limit_s=2.0, seed=0
    )
    assert diagonal.choice_G is not None
    assert best <= truth.objective(diagonal.choice_G) + 1e-12
    assert best <= truth.objective(uniforms()["int3"]) + 1e-12
    assert all(truth.is_feasible(candidate.choice_G) for candidate in found)


@pytest.mark.slow
def test_noise_makes_the_solver_worse_than_without_cross_terms():
    """The fault that the portfolio is for does occur in the test above."""
    worse = 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        linear_P, quad_PP, group_P = true_quadratic(random)
        truth = problem_for(linear_P, quad_PP, group_P, 3.0)
        seen = problem_for(linear_P, noisy(quad_PP, linear_P, group_P, 0.3, random), group_P, 3.0)
        choices = [
            make_solver("quadratic").solve(problem, time_limit_s=2.0, seed=0).choice_G
            for problem in (seen, replace(seen, quad_PP=np.zeros_like(quad_PP)))
        ]
        solved, diagonal = (truth.objective(choice_G) for choice_G in choices if choice_G is not None)
        worse += solved > diagonal * (1 + 1e-9)
    assert worse >= 3


def test_each_choice_is_measured_once_and_the_solved_one_first():
    linear_P, quad_PP, group_P = true_quadratic(np.random.default_rng(0))
    problem = problem_for(linear_P, quad_PP, group_P, 4.0)  # everything fits, so most candidates are all int4
    widest_G = uniforms()["int4"]
    found = make_candidates(widest_G, SETTINGS, lambda s: dropping(problem, s), uniforms(), NARROW_P)
    assert found[0].name == SOLVED
    keys = [candidate.choice_G.tobytes() for candidate in found]
    assert len(keys) == len(set(keys))
    assert DIAGONAL not in [candidate.name for candidate in found]
    assert AS_MEASURED not in [candidate.name for candidate in found]


def test_what_a_gpu_solved_is_refined_without_one():
    linear_P, quad_PP, group_P = true_quadratic(np.random.default_rng(0))
    problem = problem_for(linear_P, quad_PP, group_P, 3.0)
    solved_G = uniforms()["int2"]
    on_gpu, on_cpu = (
        make_candidates(
            solved_G, replace(SETTINGS, name=name), lambda s: dropping(problem, s), uniforms(), NARROW_P
        )
        for name in ("quadratic_gpu", "quadratic")
    )
    assert {candidate.name for candidate in on_gpu} == {candidate.name for candidate in on_cpu} > {SOLVED}


@pytest.mark.parametrize(
    ("places", "narrow"),
    [
        ((0, 1, 0, 1), {2}),
        ((1, 1, 1, 1), {2}),
        ((1, 2, 1, 2), {2, 3}),
        ((0, 0, 0, 0), set()),
        ((2, 2, 2, 2), {2, 3}),
    ],
)
def test_formats_below_the_uniform_one_of_the_same_bits_are_narrow(places, narrow):
    members = tuple(Member(f"w{group}", 4, 8) for group in range(4))
    groups = tuple(Group(f"g{place}", (member,)) for place, member in enumerate(members))
    space = SearchSpace(groups, (("int2", "int3", "int4"),) * 4)
    narrow_P = narrow_options(space, 3 * np.arange(4) + np.array(places))
    assert {bits for bits, is_narrow in zip(BITS * 4, narrow_P, strict=True) if is_narrow} == narrow


def test_where_few_bits_lose_more_together_than_alone_raised_losses_find_what_the_quadratic_cannot():
    """The true loss grows with the square of the additive loss of the groups of two bits, as in a model that breaks."""
    random = np.random.default_rng(5)
    linear_P, quad_PP, group_P = true_quadratic(random)
    problem = problem_for(linear_P, np.zeros_like(quad_PP), group_P, 3.0)

    def true_loss(choice_G: np.ndarray) -> float:
        two_bits = linear_P[choice_G[NARROW_P[choice_G]]].sum()
        return float(linear_P[choice_G].sum() + 100.0 * two_bits**2)

    solved = make_solver("quadratic").solve(problem, time_limit_s=2.0, seed=0)
    assert solved.choice_G is not None
    found = make_candidates(solved.choice_G, SETTINGS, lambda s: dropping(problem, s), uniforms(), NARROW_P)
    best = found[lowest([np.array([true_loss(candidate.choice_G)]) for candidate in found])]
    assert best.name.startswith(NARROW)
    assert true_loss(best.choice_G) < 0.8 * true_loss(solved.choice_G)
    assert problem.is_feasible(best.choice_G)


def test_all_uniform_formats_of_the_largest_width_are_tried():
    """int8 and w8a8 both have eight bits; one rounds inputs too, which no name tells."""
    linear_P, quad_PP, group_P = true_quadratic(np.random.default_rng(0))
    problem = problem_for(linear_P, quad_PP, group_P, 4.0)
    named = dict(zip(("int2", "int8", "w8a8"), uniforms().values(), strict=True))
    assert widest_uniforms(problem, named) == ["int8", "w8a8"]
    assert widest_uniforms(replace(problem, budgets=problem_for(linear_P, quad_PP, group_P, 3.0).budgets), named) == [
        "int8"
    ]  # fmt: skip


def test_interactions_are_what_the_two_solutions_differ_by():
    linear_P, quad_PP, group_P = true_quadratic(np.random.default_rng(1))
    problem = problem_for(linear_P, quad_PP, group_P, 3.0)
    solved_G, diagonal_G = np.arange(NUM_GROUPS) * 3, np.arange(NUM_GROUPS) * 3
    diagonal_G[:2] += 1
    found = make_candidates(solved_G, SETTINGS, lambda s: dropping(problem, s), {}, NARROW_P)
    found = [found[0], replace(found[0], name=DIAGONAL, choice_G=diagonal_G)]
    names = tuple(f"g{group}" for group in group_P)
    model = QuadraticModel(
        names, ("int2", "int3", "int4") * NUM_GROUPS, linear_P, quad_PP, linear_P, quad_PP, 1.0, "kl", "secant", 4,
        np.stack([linear_P, linear_P]), np.stack([quad_PP, 3 * quad_PP]),
    )  # fmt: skip
    losses = [np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 4.0])]
    values = interactions(found, losses, model)
    assert (values["groups_changed"], values["num_groups"]) == (2, NUM_GROUPS)
    assert values["lowered_by"] == pytest.approx(0.5)
    assert values["lowered_by_stderr"] == pytest.approx(0.5 / 3**0.5)
    cross = sum(quad_PP[p, q] for p in solved_G for q in solved_G) / 2
    assert values["share"] == pytest.approx(cross / (cross + linear_P[solved_G].sum()))
    # Batches have cross terms of 1 and 3 times: spread √2 times one, over √2.
    assert values["share_stderr"] == pytest.approx(abs(values["share"]))
    listed = describe_candidates(found, losses, 0, model, lambda choice_G: {"g": str(choice_G[0])})
    assert [entry["chosen"] for entry in listed] == [True, False]
    assert [entry["held_out_loss"] for entry in listed] == [2.0, 2.5]
    assert listed[1]["difference"] == pytest.approx(0.5)


def test_a_difference_of_one_sample_has_no_error():
    assert paired(np.array([2.0]), np.array([1.5])) == (0.5, 0.0)
