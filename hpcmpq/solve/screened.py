"""What a run that is screened knows of options that it did not measure: which of them could lower a solution.

A first pass gives a cost of every option, wrong by a factor of its own. How wrong, options that are measured tell: with
e_p = c_p + Σ_q H_pq x_q, what p costs beside the others at the solution x, and f_p the first pass's cost, log e_p / f_p
has a mean and a spread σ over those of a format. An option that is not measured costs at least f_p exp(mean − 2σ), if
it is like them.

Axis letters: P options.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.plan import Plan
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.constraints import format_classes
from hpcmpq.solve.formulate import additive
from hpcmpq.solve.wanted import could_be_chosen
from hpcmpq.store.measured_times import on_time
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.screening_rounds import read_rounds

log = logging.getLogger(__name__)

SPREADS = 2.0
"""Spreads of log e / f by which an option that is not measured may be cheaper than the mean."""

ENOUGH = 8
"""Options of a format from which its own mean and spread are known."""


def wanted_options(
    plan: Plan,
    first_P: np.ndarray,
    model: QuadraticModel,
    choice_G: np.ndarray,
    budgets: Mapping[str, float],
    settings: SolverConfig,
) -> list[int]:
    """Options, by their indices in `plan.whole_space`, that were not measured and could lower a solution.

    Args:
        plan: Of a run that is screened.
        first_P: Costs of all its options by the first pass, float64 [P].
        model: Of the measured ones, shrunk.
        choice_G: The solution, int64 [G], indices of measured options.
        budgets: It was solved for.
        settings: It was solved with.
    """
    whole = plan.whole
    measured = whole.space.places_of(plan.space.options, plan.space)
    known_P = np.full(whole.space.num_options, np.nan)
    cross_R = 0.0 if settings.drop_cross_terms else model.quad_PP[:, choice_G].sum(1)
    known_P[measured] = model.linear_P + cross_R
    least_P = np.where(
        np.isfinite(known_P), known_P, optimistic(first_P, known_P, format_classes(whole.space))
    )
    problem = additive(whole, np.zeros(len(known_P)), budgets, settings)
    return np.flatnonzero(could_be_chosen(problem, known_P, least_P) & np.isnan(known_P)).tolist()


def optimistic(first_P: np.ndarray, known_P: np.ndarray, class_P: np.ndarray) -> np.ndarray:
    """The least that options may cost, float64 [P].

    Args:
        first_P: Costs by the first pass, float64 [P].
        known_P: Costs that are known, NaN for others, float64 [P].
        class_P: Formats, numbered, int64 [P]. Those of which `ENOUGH` options are known have a mean and spread of their
            own.

    Example:
        >>> least_P = optimistic(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, np.nan]), np.array([0, 1, 1]))
        >>> least_P.round(6).tolist()
        [2.0, 4.0, 6.0]
    """
    both_P = (first_P > 0) & (np.nan_to_num(known_P) > 0)
    ratio_P = np.full(len(first_P), np.nan)
    ratio_P[both_P] = np.log(known_P[both_P] / first_P[both_P])
    least_P = np.full(len(first_P), -np.inf)
    if not both_P.any():
        return least_P
    for number in range(int(class_P.max()) + 1):
        own_P = class_P == number
        like_P = both_P & own_P if (both_P & own_P).sum() >= ENOUGH else both_P
        least_P[own_P] = np.exp(ratio_P[like_P].mean() - SPREADS * ratio_P[like_P].std())
    return first_P * least_P


def say_unmeasured(plan: Plan) -> None:
    """Say of a stage for other limits than those of the run's budgets that options are missing."""
    if plan.whole_space is not None:
        log.info(
            "%d of %d options were not measured, since the budgets cannot choose them (sensitivity.screen): what other "
            "limits could choose of them is missing here",
            plan.whole_space.num_options - plan.space.num_options,
            plan.whole_space.num_options,
        )


def of_unmeasured(plan: Plan, run: Path, budgets: Mapping[str, float]) -> str:
    """What to do where the measured options meet no budgets: the end of a sentence; empty where all are measured."""
    if plan.whole_space is None:
        return ""
    advice = (
        f"set these budgets in the config and `hpcmpq run` it into {run} again, which measures what they need"
    )
    if on_time(budgets):
        advice = "a run with sensitivity.screen: false measures all"
    return (
        f"; {plan.whole_space.num_options - plan.space.num_options} of {plan.whole_space.num_options} options were not "
        f"measured, since the budgets planned for cannot choose them (sensitivity.screen): {advice}"
    )


def screening_values(
    run: RunDir,
    plan: Plan,
    model: QuadraticModel,
    choice_G: np.ndarray,
    budgets: Mapping[str, float],
    settings: SolverConfig,
) -> dict[str, Any]:
    """`{"screening": ...}` of a solution: options measured and all, and by group those that could still lower it.

    Nothing where the run is not screened.
    """
    if plan.whole_space is None:
        return {}
    first_P = np.array(read_rounds(run, plan)[0]["cost"])
    space = plan.whole_space
    wanted: list[int] = []
    if on_time(budgets):
        log.info(
            "whether options that were not measured could lower this solution is not known: a budget is on time"
        )
    else:
        wanted = wanted_options(plan, first_P, model, choice_G, budgets, settings)
    names: dict[str, list[str]] = {}
    for p in wanted:
        names.setdefault(space.groups[space.options[p].group].name, []).append(space.options[p].format)
    if names:
        group, formats = next(iter(names.items()))
        log.warning(
            "%d of %d options that were not measured could lower this solution, such as %s of %s; `hpcmpq calibrate "
            "%s` measures them, then reduce and solve again",
            len(wanted),
            space.num_options - plan.space.num_options,
            formats[0],
            group,
            run.path,
        )
    return {
        "screening": {
            "measured": plan.space.num_options,
            "options": space.num_options,
            "rounds": len(plan.rounds),
            "wanted": names,
        }
    }
