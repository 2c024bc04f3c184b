"""Which options to measure: first by the first pass alone, then by what is measured and what may be.

Axis letters: P options, G groups.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hpcmpq.plan import Plan
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import additive, make_problem, uniform_hint
from hpcmpq.solve.outcome import find_solution
from hpcmpq.solve.screened import wanted_options
from hpcmpq.solve.wanted import could_be_chosen
from hpcmpq.space import SearchSpace

MARGIN = 0.35
"""By how much an option may be cheaper than the first pass says, and be measured in the first round: about the error of
that pass on SmolLM2 as a logarithm. What it misses, later rounds find."""

SOLVE_S = 10.0
"""Solver seconds of a look at what is measured, at most."""


def first_options(
    plan: Plan, first_P: np.ndarray, budgets: Mapping[str, float], settings: SolverConfig
) -> list[int]:
    """Indices of the options that are measured first, some of every group.

    They are those that the best assignment takes if one option at a time is cheaper than the first pass says by
    `MARGIN`, and the best uniform assignment within the budgets, which solutions are compared with.

    Args:
        plan: Of all options.
        first_P: Their costs by the first pass, float64 [P].
        budgets: Of the config.
        settings: With its constraints.
    """
    problem = additive(plan, first_P, budgets, settings)
    found_P = could_be_chosen(problem, first_P, first_P * np.exp(-MARGIN))
    uniform_G = uniform_hint(plan.space, problem)
    if uniform_G is not None:
        found_P[uniform_G] = True
    return np.flatnonzero(found_P).tolist()


def more_options(
    plan: Plan,
    first_P: np.ndarray,
    model: QuadraticModel,
    budgets: Mapping[str, float],
    settings: SolverConfig,
) -> list[int]:
    """Indices, among all options, of those that a solution of the measured ones wants measured too.

    Args:
        plan: Of a run that is screened.
        first_P: Costs of all its options by the first pass, float64 [P].
        model: Of the measured ones, shrunk.
        budgets: Of a solution.
        settings: Of a solution.
    """
    settings = replace(settings, time_limit_s=min(settings.time_limit_s, SOLVE_S))
    problem = make_problem(plan, model, budgets, settings)
    found = find_solution(problem, model, settings, uniform_hint(plan.space, problem))
    if found.choice_G is None:  # the budgets are smaller than those that the measured ones were chosen for
        measured = plan.whole.space.places_of(plan.space.options, plan.space)
        return sorted(set(first_options(plan.whole, first_P, budgets, settings)) - set(measured.tolist()))
    return wanted_options(plan, first_P, model, found.choice_G, budgets, settings)


def share_of_blocks(whole: SearchSpace, part: SearchSpace) -> float:
    """What measuring some options costs of measuring all: an option runs the blocks from its own to the last."""

    def blocks(space: SearchSpace) -> float:
        return float(sum(last + 1 - place(space, option.group) for option in space.options))

    def place(space: SearchSpace, group: int) -> int:
        block = space.groups[group].block
        return 0 if block is None else block

    last = max(place(whole, group) for group in range(len(whole.groups)))
    return blocks(part) / blocks(whole)
