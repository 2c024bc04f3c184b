"""What every solver in the table must do, on random small problems against an independent enumeration.

Axis letters: P options, G groups.
"""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from bench import fuzz
from bench.small_instances import Instance, Limit, faults, least, random_instance
from hpcmpq.errors import UserError
from hpcmpq.problem import Budget, Cost, CostTerm, Problem, Solution, Termination
from hpcmpq.solvers import SOLVERS, make_solver
from hpcmpq.solvers.diagonal import DiagonalSolver
from hpcmpq.solvers.exhaustive import ExhaustiveSolver
from hpcmpq.solvers.greedy import GreedySolver
from hpcmpq.solvers.linear import LinearSolver
from hpcmpq.solvers.on_gpu import TorchPositivePart
from hpcmpq.solvers.quadratic import QuadraticSolver

EXACT = ("quadratic", "linear", "exhaustive")
"""Solvers that prove optima of the full model, given time."""

ALWAYS = {
    "greedy": GreedySolver(drop_cross_terms=True),
    "diagonal": DiagonalSolver(drop_cross_terms=True),
}
"""Solvers that must be told to drop cross terms."""

BY_TORCH = QuadraticSolver(TorchPositivePart("cpu", least_rows=1))
"""What `quadratic_gpu` is on a GPU, here on the host."""

ROUNDED = ("greedy", "linear_lp")
"""Solvers that round the answer of a relaxation: a bound is theirs, an optimum only by luck."""


def solver_of(name: str):
    return ALWAYS.get(name) or made(name)


def made(name: str):
    return BY_TORCH if name == "quadratic_gpu" else make_solver(name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(250))
def test_quadratic_equals_enumeration(seed: int) -> None:
    instance = random_instance(seed)
    answer = make_solver("quadratic").solve(instance.problem(), time_limit_s=20, seed=seed)
    assert not faults(instance, answer, least(instance), exact=True)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "quadratic"])
@pytest.mark.parametrize("seed", range(1000, 1025))
def test_other_solvers_against_enumeration(name: str, seed: int) -> None:
    instance = random_instance(seed)
    answer = solver_of(name).solve(instance.problem(), time_limit_s=20, seed=seed)
    # Linearised products lose digits to CP-SAT's integer scaling: optimality is asked of `quadratic` only.
    assert not faults(instance, answer, least(instance), exact=name == "exhaustive")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(2000, 2012))
def test_separable_problems_are_solved_exactly(name: str, seed: int) -> None:
    instance = random_instance(seed)
    instance = replace(instance, pairs=dict.fromkeys(instance.pairs, 0.0), ties=())
    answer = made(name).solve(instance.problem(), time_limit_s=20, seed=0)
    assert not faults(instance, answer, least(instance), exact=name not in ROUNDED)


@pytest.mark.parametrize("name", (*fuzz.SOLVERS, *fuzz.BOUNDS))
def test_no_answer_and_no_bound_is_refuted_whatever_the_time_limit(name: str) -> None:
    # A short version of `python -m bench.fuzz`.
    said: list[str] = []
    for seed in range(5000, 5012):
        found = fuzz.check(name, random_instance(seed), seed)
        said += [] if found is None else [f"seed {seed}: {fault}" for fault in found[1]]
    assert not said


def test_the_oracle_finds_what_is_wrong() -> None:
    # Two groups, one budget: int8 with int2 is the best of what fits; every field of its answer is then made wrong.
    formats, own = (("int2", "int8"), ("int2", "int8")), {"int2": 1.0, "int8": 4.0}
    cells = [(g, f) for g in range(2) for f in formats[g]]
    loss = {(0, "int2"): 3.0, (0, "int8"): 0.0, (1, "int2"): 2.0, (1, "int8"): 0.0}
    limit = Limit(5.0, 0.0, {cell: own[cell[1]] for cell in cells})
    pairs = {(a, b): 0.0 for a in cells[:2] for b in cells[2:]}
    instance = Instance(formats, 0.0, loss, pairs, (limit,))
    best = least(instance)
    assert best == (2.0, ("int8", "int2"))
    right = Solution(Termination.OPTIMAL, np.array([1, 2]), 2.0, 2.0)
    assert faults(instance, right, best, exact=True) == []
    broken = {
        "invalid bound": replace(right, bound=2.0 + 1e-9),
        "wrong objective": replace(right, objective=2.1),
        "budget broken": replace(right, choice_G=np.array([1, 3]), objective=0.0),
        "false optimal": replace(right, choice_G=np.array([0, 3]), objective=3.0),
        "false infeasible": replace(right, choice_G=None, termination=Termination.INFEASIBLE, detail="no"),
        "not proven": replace(right, termination=Termination.TIME_LIMIT),
        "nothing said": replace(right, choice_G=None, termination=Termination.INFEASIBLE),
    }
    for fault, answer in broken.items():
        assert fault in faults(instance, answer, best, exact=True)
    tied = replace(instance, ties=((0, 1),))
    assert "rule broken" in faults(tied, right, least(tied))


LISTS = (("int4", "bf16"), ("int2", "int4", "int8"), ("int8", "bf16"), ("bf16", "int4", "int2"))
"""Formats of four groups, as targets narrow them; no two groups have one format at the same place twice."""


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("tie", [(0, 1), (1, 2), (0, 2), (3, 0), (0, 1, 3)])
def test_tied_groups_take_the_same_format_whatever_its_place(name: str, tie: tuple[int, ...]) -> None:
    formats = [format_ for names in LISTS for format_ in names]
    group_P = np.repeat(np.arange(len(LISTS)), [len(names) for names in LISTS])
    classes = sorted(set(formats))
    rng = np.random.default_rng(0)
    table = rng.random([len(LISTS[group]) for group in tie])
    cost = Cost("time", "s", rng.random(len(formats)), (CostTerm(tie, table),))
    problem = Problem(
        rng.standard_normal(len(formats)),
        np.zeros((len(formats), len(formats))),
        group_P,
        (Budget(cost, 2.9),),
        ties=(tie,),
        tie_class_P=np.array([classes.index(format_) for format_ in formats]),
    )
    best = np.inf  # by names: nothing here looks at positions or classes
    for names in itertools.product(*LISTS):
        if len({names[group] for group in tie}) == 1:
            choice = [list(group_P).index(g) + LISTS[g].index(name_) for g, name_ in enumerate(names)]
            place = tuple(LISTS[group].index(names[group]) for group in tie)
            if cost.linear_P[choice].sum() + table[place] <= 2.9:
                best = min(best, problem.linear_P[choice].sum())
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.choice_G is not None
    assert len({formats[p] for p in answer.choice_G[list(tie)]}) == 1
    assert answer.bound is not None and answer.bound <= best + 1e-12
    if name != "greedy":
        assert answer.objective == pytest.approx(best)


@pytest.mark.parametrize("name", SOLVERS)
def test_groups_tied_without_a_common_format_are_infeasible(name: str) -> None:
    # (a, b) and (c, a): were positions compared, a with c or b with a would pass.
    problem = Problem(
        np.zeros(4),
        np.zeros((4, 4)),
        np.array([0, 0, 1, 1]),
        ties=((0, 1),),
        tie_class_P=np.array([0, 1, 2, 3]),
    )
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.termination is Termination.INFEASIBLE and answer.detail


def test_two_options_of_one_class_in_a_group_are_refused() -> None:
    problem = Problem(np.zeros(2), np.zeros((2, 2)), np.array([0, 0]), tie_class_P=np.array([1, 1]))
    with pytest.raises(ValueError, match="two options of one class"):
        make_solver("quadratic").solve(problem, time_limit_s=1, seed=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_known_optimum(name: str) -> None:
    # Two groups, options (a, b) and (c, d); c = (4, 1, 3, 0), H[b, d] = 10, costs (0, 1, 0, 1) ≤ 2.
    # ac 7, ad 4, bc 4, bd 11; without cross terms bd 1.
    quad_PP = np.zeros((4, 4))
    quad_PP[1, 3] = quad_PP[3, 1] = 10.0
    cost = Cost("size", "bytes", np.array([0.0, 1.0, 0.0, 1.0]))
    problem = Problem(np.array([4.0, 1.0, 3.0, 0.0]), quad_PP, np.array([0, 0, 1, 1]), (Budget(cost, 2.0),))
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.objective == (11.0 if name in ALWAYS else 4.0)
    assert answer.bound <= 4.0 + 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_infeasible_says_the_smallest_reachable_value(name: str) -> None:
    # Cheapest assignment costs 2 + 3 = 5 bytes.
    cost = Cost("size", "bytes", np.array([2.0, 4.0, 3.0, 7.0]))
    problem = Problem(np.zeros(4), np.zeros((4, 4)), np.array([0, 0, 1, 1]), (Budget(cost, 4.5),))
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.termination is Termination.INFEASIBLE
    assert "size" in answer.detail and "5 bytes" in answer.detail


@pytest.mark.parametrize("name", SOLVERS)
def test_a_limit_far_below_one_is_kept(name: str) -> None:
    # Microseconds in seconds: 2 + 3 fits, 2 + 3.0001 does not, although it is over by 1e-10 s only.
    cost = Cost("latency_s", "seconds", np.array([2e-6, 4e-6, 3e-6, 3.0001e-6]))
    problem = Problem(
        np.array([1.0, 0.0, 1.0, 0.0]), np.zeros((4, 4)), np.array([0, 0, 1, 1]), (Budget(cost, 5e-6),)
    )
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.choice_G is not None and answer.choice_G.tolist() == [0, 2]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(4))
def test_a_limit_is_kept_exactly_where_a_constant_cancels_the_costs(name: str, seed: int) -> None:
    # Costs of a few bytes are left of summands of 1e8: the limit is what the best choice costs, to the last digit.
    rng = np.random.default_rng(seed)
    group_P, constant = np.repeat(np.arange(4), 3), 1e8
    cost_P = rng.random(12) - constant / 4
    linear_P = -(cost_P + constant / 4) + 0.1 * rng.random(12)  # what is dearer loses less
    every = [np.array(c) for c in itertools.product(range(3), range(3, 6), range(6, 9), range(9, 12))]
    exact = {tuple(c): math.fsum([constant, *cost_P[c]]) for c in every}
    limit = sorted(exact.values())[40]
    cost = Cost("size", "bytes", cost_P, constant=constant)
    problem = Problem(linear_P, np.zeros((12, 12)), group_P, (Budget(cost, limit),))
    best = min(math.fsum(linear_P[c]) for c in every if exact[tuple(c)] <= limit)
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.choice_G is not None and problem.is_feasible(answer.choice_G)
    assert exact[tuple(answer.choice_G)] <= limit + 1e-13 * 2 * constant
    assert answer.bound is not None and answer.bound <= best + 1e-12
    if name not in ROUNDED:
        assert answer.objective == pytest.approx(best, abs=1e-9)


def test_a_cost_that_stands_for_never_widens_no_limit() -> None:
    # 1e30 bytes are no summand of a choice within ten, so their rounding is not allowed for.
    cost = Cost("size", "bytes", np.array([6.0, 1e30, 5.0, 4.0]))
    problem = Problem(np.zeros(4), np.zeros((4, 4)), np.array([0, 0, 1, 1]), (Budget(cost, 10.0),))
    assert not problem.is_feasible(np.array([0, 2]))
    assert problem.is_feasible(np.array([0, 3]))


@pytest.mark.parametrize("name", SOLVERS)
def test_budgets_that_exclude_one_another(name: str) -> None:
    # Every group has a small slow option (1, 4) and a large fast one (4, 1); both limits at 4 for two groups:
    # each can be met alone (2), together the sizes and times are (2, 8), (5, 5), (8, 2).
    size = Cost("size", "bytes", np.array([1.0, 4.0, 1.0, 4.0]))
    time = Cost("time", "seconds", np.array([4.0, 1.0, 4.0, 1.0]))
    problem = Problem(
        np.zeros(4), np.zeros((4, 4)), np.array([0, 0, 1, 1]), (Budget(size, 4.0), Budget(time, 4.0))
    )
    answer = solver_of(name).solve(problem, time_limit_s=10, seed=0)
    assert answer.termination is Termination.INFEASIBLE
    assert "8 bytes" in answer.detail and "other budgets" in answer.detail


@pytest.mark.parametrize("name", SOLVERS)
def test_nan_is_refused(name: str) -> None:
    group_P = np.array([0, 0, 1, 1])
    clean = Problem(np.zeros(4), np.zeros((4, 4)), group_P)
    broken_PP = np.zeros((4, 4))
    broken_PP[0, 2] = broken_PP[2, 0] = np.nan
    nan_budget = Budget(Cost("size", "bytes", np.array([np.nan, 1.0, 1.0, 1.0])), 3.0)
    for problem in (
        replace(clean, linear_P=np.array([np.nan, 0.0, 0.0, 0.0])),
        replace(clean, quad_PP=broken_PP),
        replace(clean, budgets=(nan_budget,)),
        replace(clean, budgets=(Budget(Cost("size", "bytes", np.ones(4)), float("nan")),)),
    ):
        with pytest.raises(ValueError):
            solver_of(name).solve(problem, time_limit_s=1, seed=0)


@pytest.mark.parametrize("solver", [GreedySolver(), DiagonalSolver(), LinearSolver(products="drop")])
def test_knapsack_forms_refuse_cross_terms(solver) -> None:
    quad_PP = np.zeros((4, 4))
    quad_PP[1, 3] = quad_PP[3, 1] = 10.0
    problem = Problem(np.zeros(4), quad_PP, np.array([0, 0, 1, 1]))
    with pytest.raises(UserError, match="cross terms"):
        solver.solve(problem, time_limit_s=1, seed=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_tiny_time_limit_still_answers(name: str) -> None:
    instance = replace(random_instance(4242), limits=(), ties=(), forbidden=frozenset())
    answer = solver_of(name).solve(instance.problem(), time_limit_s=0.1, seed=0)
    assert answer.choice_G is not None and not faults(instance, answer, least(instance))


def test_unknown_solver_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="quadratic"):
        make_solver("simplex")


def test_enumeration_in_halves_where_groups_are_uneven() -> None:
    # Eight groups of one option, then sixteen of two: two halves of 256 choices, not of 16 and 4,096.
    group_P = np.repeat(np.arange(24), [1] * 8 + [2] * 16)
    linear_P = np.random.default_rng(0).standard_normal(len(group_P))
    problem = Problem(linear_P, np.zeros((len(group_P), len(group_P))), group_P)
    answer = ExhaustiveSolver().solve(problem, time_limit_s=60, seed=0)
    assert answer.objective == pytest.approx(np.minimum.reduceat(linear_P, problem.offset_G).sum())
