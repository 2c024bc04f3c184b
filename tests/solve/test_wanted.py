"""What need not be measured, against all assignments of random problems."""

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.solve.wanted import could_be_chosen

MARGINS = (0.0, 0.3, 1.0)
"""By how much of an option's cost its lower limit may be too low, at most."""

Drawn = tuple[Problem, np.ndarray]


def optimal_options(problem: Problem) -> set[int]:
    """Options of all assignments of least cost within the budgets, by enumeration; none if there is no assignment."""
    groups = [np.flatnonzero(problem.group_P == g) for g in range(problem.num_groups)]
    choices = [np.array(choice) for choice in itertools.product(*groups)]
    feasible = [choice_G for choice_G in choices if problem.is_feasible(choice_G)]
    least = min(map(problem.objective, feasible), default=0.0)
    return {int(p) for choice_G in feasible if problem.objective(choice_G) <= least for p in choice_G}


@st.composite
def problems(draw: st.DrawFn) -> Drawn:
    """A problem whose losses mostly fall with the bits, with one or two budgets and perhaps a tie; least losses."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = random.integers(2, 5, size=draw(st.integers(2, 5)))
    group_P = np.repeat(np.arange(len(sizes)), sizes)
    bits_P = np.concatenate([np.sort(random.integers(2, 9, size)) for size in sizes]).astype(float)
    numel_P = random.integers(1, 6, len(sizes))[group_P].astype(float)
    cost_P = np.exp(
        random.normal(0, 1, len(sizes))[group_P] - 0.7 * bits_P + random.normal(0, 0.4, len(bits_P))
    )
    cost_P -= draw(st.sampled_from([0.0, 0.01]))  # measured losses may be below zero
    least_P = cost_P - np.abs(cost_P) * random.uniform(0, draw(st.sampled_from(MARGINS)), len(cost_P))
    budgets = []
    for number in range(draw(st.integers(1, 2))):
        amount_P = bits_P * numel_P * (1.0 if number == 0 else random.uniform(0.5, 1.5, len(bits_P)))
        low = sum(amount_P[group_P == g].min() for g in range(len(sizes)))
        high = sum(amount_P[group_P == g].max() for g in range(len(sizes)))
        share = draw(st.floats(0.1, 1.1))
        budgets.append(Budget(Cost(f"cost{number}", "bits", amount_P), low + share * (high - low)))
    ties = ((0, 1),) if draw(st.booleans()) and sizes[0] == sizes[1] else ()
    return Problem(cost_P, np.zeros((len(cost_P),) * 2), group_P, tuple(budgets), ties=ties), least_P


@given(problems(), st.integers(0, 2**32 - 1))
def test_no_option_of_an_optimal_assignment_is_ever_ruled_out(drawn: Drawn, seed: int):
    """A first pass chooses; then whatever could lower the solution is measured, until nothing could."""
    problem, least_P = drawn
    needed = optimal_options(problem)
    assume(needed)
    cost_P = problem.linear_P
    first_P = np.exp(np.random.default_rng(seed).normal(0, 0.5, len(cost_P))) * np.abs(cost_P)
    measured_P, wanted_P = np.zeros(len(cost_P), bool), could_be_chosen(problem, first_P, 0.7 * first_P)
    while wanted_P.any():
        measured_P |= wanted_P
        known_P = np.where(measured_P, cost_P, np.nan)
        wanted_P = could_be_chosen(problem, known_P, np.where(measured_P, cost_P, least_P)) & ~measured_P
    assert needed <= set(np.flatnonzero(measured_P).tolist())


def test_what_lies_far_from_the_budgets_price_is_ruled_out():
    """Two groups, 2, 4 or 8 bits each, 8 in all: from 2 to 4 bits losses fall by 3 a bit, so int8 at 0 is too dear."""
    bits = Cost("bits", "bits", np.array([2.0, 4.0, 8.0] * 2))
    problem = Problem(np.zeros(6), np.zeros((6, 6)), np.repeat([0, 1], 3), (Budget(bits, 8.0),))
    known_P = np.array([9.0, 3.0, np.nan, 8.0, 2.0, np.nan])
    least_P = np.nan_to_num(known_P)
    assert could_be_chosen(problem, known_P, least_P).tolist() == [False, True, False, False, True, False]
    wider = replace(problem, budgets=(Budget(bits, 12.0),))
    assert could_be_chosen(wider, known_P, least_P)[[2, 5]].tolist() == [True, True]
