"""What a solve gives: the solver's answer, and the values of `solution.json` that follow from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmpq.errors import Infeasible, UserError
from hpcmpq.plan import Plan
from hpcmpq.problem import Problem, Solution, Termination, relative_gap
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import cost_values, uniform_choices
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.robust import robust_size, robust_value, solve_robust
from hpcmpq.solvers.valid_bound import objective_size
from hpcmpq.store.measured_times import times_id


def solve_problem(
    problem: Problem, model: QuadraticModel, settings: SolverConfig, hint_G: np.ndarray | None = None
) -> Solution:
    """An assignment by the configured solver, see `find_solution`.

    Raises:
        Infeasible: If no assignment meets the budgets, or none was found in time.
        UserError: If robust_k is asked of a calibration that has no separate batches.
    """
    solution = find_solution(problem, model, settings, hint_G)
    if solution.choice_G is None:
        raise none_found(solution, "the budgets", settings.time_limit_s)
    return solution


def none_found(solution: Solution, limits: str, time_limit_s: float) -> Infeasible:
    """Why a solver gives no assignment: there is none within the limits, or it found none in its time."""
    if solution.termination is Termination.INFEASIBLE:
        return Infeasible(f"no assignment meets {limits}: {solution.detail}")
    return Infeasible(
        f"no assignment that meets {limits} was found within {time_limit_s:g} s: {solution.detail}; raise "
        "solver.time_limit_s or a limit"
    )


def find_solution(
    problem: Problem, model: QuadraticModel, settings: SolverConfig, hint_G: np.ndarray | None = None
) -> Solution:
    """What the configured solver finds for the mean, or for mean + robust_k·std over the calibration batches.

    Raises:
        UserError: If robust_k is asked of a calibration that has no separate batches.
    """
    if settings.robust_k > 0:
        linear_BP, quad_BPP = robust_batches(model, settings)
        return solve_robust(
            problem,
            linear_BP,
            quad_BPP,
            deviations=settings.robust_k,
            time_limit_s=settings.time_limit_s,
            seed=settings.seed,
            hint_G=hint_G,
        )
    return make_solver(settings.name).solve(
        problem, time_limit_s=settings.time_limit_s, seed=settings.seed, hint_G=hint_G
    )


def robust_batches(model: QuadraticModel, settings: SolverConfig) -> tuple[np.ndarray, np.ndarray]:
    """C and H of every calibration batch, float64 [B, P] and [B, P, P].

    Raises:
        UserError: If there are fewer than two batches, or the solver's name is not ``quadratic``.
    """
    if settings.name != "quadratic":
        raise UserError(f"solver.robust_k needs solver.name quadratic, got {settings.name}")
    if len(model.batch_linear_BP) < 2:
        raise UserError(
            "solver.robust_k needs at least two calibration batches: lower calibration.samples_per_unit "
            "and calibrate in a new run directory"
        )
    quad_BPP = np.zeros_like(model.batch_quad_BPP) if settings.drop_cross_terms else model.batch_quad_BPP
    return model.batch_linear_BP, quad_BPP


def objective_value(
    problem: Problem, model: QuadraticModel, settings: SolverConfig, choice_G: np.ndarray
) -> float:
    """What the solver minimised, at a choice."""
    if settings.robust_k > 0:
        batches = robust_batches(model, settings)
        return problem.constant + robust_value(*batches, choice_G, settings.robust_k)
    return problem.objective(choice_G)


def value_size(
    problem: Problem, model: QuadraticModel, settings: SolverConfig, choice_G: np.ndarray
) -> float:
    """Sum of the absolute values of the summands of `objective_value`."""
    if settings.robust_k > 0:
        return robust_size(problem, *robust_batches(model, settings), choice_G, settings.robust_k)
    return objective_size(problem, choice_G)


def assignment_values(
    plan: Plan,
    model: QuadraticModel,
    problem: Problem,
    choice_G: np.ndarray,
    objective: float,
    bound: float | None,
) -> dict[str, Any]:
    """The values of `solution.json` that follow from the chosen options."""
    predicted = model.predicted_loss(choice_G)
    return {
        "assignment": plan.space.assignment(choice_G),
        "objective": objective,
        "gap": None if bound is None else relative_gap(objective, bound),
        "costs": cost_values(plan, choice_G),
        **({} if plan.times is None else {"times": times_id(plan.times)}),
        "predicted_loss": predicted,
        "predicted_cross_terms": predicted - model.loss0 - float(model.linear_P[choice_G].sum()),
    }


def describe(
    plan: Plan,
    model: QuadraticModel,
    problem: Problem,
    solution: Solution,
    budgets: Mapping[str, float],
    settings: SolverConfig,
) -> dict[str, Any]:
    """Values of `solution.json`."""
    assert solution.choice_G is not None and solution.objective is not None
    return {
        "format_version": 1,
        **assignment_values(plan, model, problem, solution.choice_G, solution.objective, solution.bound),
        "bound": solution.bound,
        "termination": solution.termination.value,
        "detail": solution.detail,
        "budgets": {name: float(limit) for name, limit in budgets.items()},
        "seconds": solution.seconds,
        "solver": dataclasses.asdict(settings),
        "uniform": {
            name: {
                "predicted_loss": model.predicted_loss(uniform_G),
                "feasible": problem.is_feasible(uniform_G),
                "costs": cost_values(plan, uniform_G),
            }
            for name, uniform_G in uniform_choices(plan.space).items()
        },
        "fingerprint": plan.fingerprint,
    }
