"""The frontier stage: the trade-off curve between one cost and the predicted loss, each point with its bound.

Points are solved from the tightest budget to the loosest; each starts from the previous solution, which stays
feasible. Neighbours help each other without further work: a solution within a smaller budget is one within a
larger, and a bound for a larger budget is one for a smaller. Solved points are kept until all are there, so that
an interrupted frontier goes on where it was.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpcmpq.plan import Plan
from hpcmpq.problem import Problem, Solution, Termination, relative_gap
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import known_cost, make_problem, plan_costs, uniform_choices
from hpcmpq.solve.frontier_points import SolvedPoints, open_points, remove_points
from hpcmpq.solve.outcome import find_solution, none_found, objective_value, value_size
from hpcmpq.solve.screened import say_unmeasured
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solvers.valid_bound import lowered
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.measured_times import on_time, times_id
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir


def frontier(
    run: RunDir,
    cost: str,
    limits: np.ndarray,
    other_budgets: Mapping[str, float],
    settings: SolverConfig,
    on_point: Callable[[int, int], None],
) -> dict[str, Any]:
    """Solve for every limit on `cost` and write `frontier.json`; returns its values.

    Interrupted, it leaves the solved points in RUN/frontier, and the same call goes on.

    Args:
        run: A reduced run directory.
        cost: Name of the cost that varies.
        limits: Increasing limits, float64 [F], in the cost's unit.
        other_budgets: Budgets that hold at every point.
        settings: Solver, constraints and robustness; `time_limit_s` is for one point.
        on_point: Called with the number of points done and of all points.

    Raises:
        Infeasible: If not even the largest limit can be met.
    """
    plan = read_plan(run)
    say_unmeasured(plan)
    model = shrunk(read_quadratic(run.quadratic_path, plan), settings.shrink)
    known_cost(plan, plan_costs(plan), cost, "cost")
    problems = [
        make_problem(plan, model, {**other_budgets, cost: float(limit)}, settings) for limit in limits
    ]
    points_on_disk = open_points(run, problems, model, settings)
    solutions = sweep(problems, model, settings, on_point, points_on_disk)
    points = []
    for limit, problem, solution in zip(limits, problems, solutions, strict=True):
        if solution.choice_G is None:
            continue
        points.append(
            {
                "limit": float(limit),
                "assignment": plan.space.assignment(solution.choice_G),
                "objective": solution.objective,
                "bound": solution.bound,
                "gap": solution.gap,
                "termination": solution.termination.value,
                "seconds": solution.seconds,
                "predicted_loss": model.predicted_loss(solution.choice_G),
                "costs": problem.costs(solution.choice_G),
            }
        )
    if not points:
        remove_points(run)
        raise none_found(solutions[-1], f"{cost} of up to {limits[-1]:g}", settings.time_limit_s)
    priced = plan_costs(plan)[cost]
    values = {
        "format_version": 1,
        "cost": cost,
        "unit": priced.unit,
        "other_budgets": dict(other_budgets),
        "solver": dataclasses.asdict(settings),
        "planned_solver": dataclasses.asdict(plan.config.solver),
        "num_options": plan.space.num_options,
        "points": points,
        "uniform": {
            name: {
                "cost": priced.value(choice_G, problems[0].offset_G),
                "predicted_loss": model.predicted_loss(choice_G),
            }
            for name, choice_G in uniform_choices(plan.space).items()
            if np.isfinite(priced.value(choice_G, problems[0].offset_G))
        },
        "fingerprint": plan.fingerprint,
        **({"times": times_id(plan.times)} if on_time({cost, *other_budgets}) else {}),
    }
    write_artefact(run.frontier_path, values)
    remove_points(run)
    return values


def uniform_range(plan: Plan, cost: str) -> tuple[float, float] | None:
    """Least and largest cost of a uniform assignment, which a frontier is usually wanted between; None without two.

    Raises:
        UserError: If the cost is unknown, or its times were never measured.
    """
    priced = known_cost(plan, plan_costs(plan), cost, "cost")
    offset_G = plan.space.offset_G
    values = [priced.value(choice_G, offset_G) for choice_G in uniform_choices(plan.space).values()]
    known = [value for value in values if np.isfinite(value)]
    return (min(known), max(known)) if known and min(known) < max(known) else None


def sweep(
    problems: list[Problem],
    model: QuadraticModel,
    settings: SolverConfig,
    on_point: Callable[[int, int], None],
    kept: SolvedPoints,
) -> list[Solution]:
    """Solve problems whose feasible sets grow, sharing solutions upwards and bounds downwards.

    Solutions are taken from `kept` as far as they are there, and stored there.
    """
    solutions: list[Solution] = []
    hint_G: np.ndarray | None = None
    for place, problem in enumerate(problems):
        stored = kept.read(place, problem)
        solution = _solve_from(hint_G, problem, model, settings) if stored is None else stored
        if stored is None:
            kept.write(place, solution)
        hint_G = solution.choice_G if solution.choice_G is not None else hint_G
        solutions.append(solution)
        on_point(place + 1, len(problems))
    bound: float | None = None
    for place in reversed(range(len(solutions))):
        solution = solutions[place]
        known = [b for b in (bound, solution.bound) if b is not None]
        if known and solution.choice_G is not None:
            bound = max(known)
            solutions[place] = _with(solution, solution.choice_G, problems[place], model, settings, bound)
    return solutions


def _solve_from(
    hint_G: np.ndarray | None, problem: Problem, model: QuadraticModel, settings: SolverConfig
) -> Solution:
    """What the solver finds, or the solution of a smaller budget if that is better."""
    solution = find_solution(problem, model, settings, hint_G)
    if hint_G is not None:
        objective = objective_value(problem, model, settings, hint_G)
        if solution.objective is None or objective < solution.objective:
            return _with(solution, hint_G, problem, model, settings, solution.bound)
    return solution


def _with(
    solution: Solution,
    choice_G: np.ndarray,
    problem: Problem,
    model: QuadraticModel,
    settings: SolverConfig,
    bound: float | None,
) -> Solution:
    """The solution with another choice or bound.

    Raises:
        InvalidBound: If the bound is above the choice's objective by more than rounding.
    """
    objective = objective_value(problem, model, settings, choice_G)
    if bound is not None:
        bound = lowered(bound, objective, value_size(problem, model, settings, choice_G))
    termination = Termination.TIME_LIMIT
    if bound is not None and relative_gap(objective, bound) <= 1e-6:
        termination = Termination.OPTIMAL
    elif solution.termination is Termination.FEASIBLE:
        termination = Termination.FEASIBLE
    costs = problem.costs(choice_G)
    return Solution(termination, choice_G, objective, bound, costs, solution.seconds, solution.detail)
