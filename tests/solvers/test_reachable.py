"""The sentence about budgets that cannot be met names what each could be, as enumeration finds it."""

import itertools
import re

import numpy as np
import pytest

from hpcmpq.errors import EXIT_INFEASIBLE, Infeasible, exit_status
from hpcmpq.problem import Budget, Cost, Problem, Solution, Termination
from hpcmpq.solvers import SOLVERS, make_solver

NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?)"


def conflicting(limits: dict[str, float]) -> Problem:
    """Three groups of three options; what is small in bits is slow."""
    bits_P = np.array([2.0, 4.0, 8.0] * 3) * np.repeat([1.0, 2.0, 3.0], 3)
    time_P = np.array([9.0, 5.0, 1.0] * 3) * np.repeat([1.0, 1.5, 2.0], 3)
    heat_P = np.array([1.0, 1.0, 2.0] * 3)
    costs = {
        "bits": Cost("bits", "b", bits_P),
        "time": Cost("time", "s", time_P),
        "heat": Cost("heat", "W", heat_P),
    }
    return Problem(
        linear_P=np.zeros(9),
        quad_PP=np.zeros((9, 9)),
        group_P=np.repeat([0, 1, 2], 3),
        budgets=tuple(Budget(costs[name], limit) for name, limit in limits.items()),
    )


def least(problem: Problem, name: str, others: bool) -> float | None:
    """The least cost over all assignments, or over those that keep the other budgets, if there are any."""
    found = []
    for choice in itertools.product(range(3), repeat=3):
        chosen = np.arange(3) * 3 + choice
        values = {b.cost.name: float(b.cost.linear_P[chosen].sum()) for b in problem.budgets}
        kept = [values[b.cost.name] <= b.limit for b in problem.budgets if b.cost.name != name]
        if all(kept) or not others:
            found.append(values[name])
    return min(found, default=None)


def sentences(detail: str) -> dict[str, tuple[float, float]]:
    """{budget: (limit, smallest reachable)} of what is said."""
    pattern = rf"budget (\w+) = {NUMBER} \w+ is below the smallest reachable {NUMBER} \w+"
    return {name: (float(limit), float(reached)) for name, limit, reached in re.findall(pattern, detail)}


def answer_of(name: str, problem: Problem) -> Solution:
    return make_solver(name).solve(problem, time_limit_s=60.0, seed=0)


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"quadratic_gpu"}))  # which is `quadratic`, on a GPU
@pytest.mark.parametrize(
    ("limits", "others"),
    [
        ({"bits": 18.0, "time": 15.0}, True),
        ({"bits": 18.0, "time": 15.0, "heat": 6.0}, True),
        ({"bits": 11.0, "time": 4.0}, False),
        ({"bits": 18.0, "time": 4.0}, False),
    ],
)
def test_every_budget_that_is_too_low_is_named_with_what_it_could_be(name, limits, others):
    problem = conflicting(limits)
    answer = answer_of(name, problem)
    assert answer.termination is Termination.INFEASIBLE
    expected = {cost: (limit, least(problem, cost, others)) for cost, limit in limits.items()}
    expected = {cost: pair for cost, pair in expected.items() if pair[1] is not None and pair[1] > pair[0]}
    assert expected and sentences(answer.detail) == expected
    assert answer.detail.count("while the other budgets are kept") == (len(expected) if others else 0)
    assert "\n" not in answer.detail
    assert exit_status(Infeasible(answer.detail)) == EXIT_INFEASIBLE
