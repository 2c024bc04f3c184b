"""The solve stage: quadratic model and budgets to `solution.json`. Needs numpy, h5py and ortools alone.

A run directory copied to a laptop solves there, also without the command line's dependencies:

    python -m hpcmpq.solve RUN --budget weight_bits=3.0 --budget size_bytes=5e9
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.config import SolverConfig, check_format
from hpcmpq.costs import average_bits_cost, bops_cost, macs_cost, size_bytes_cost, weight_bits_cost
from hpcmpq.errors import Infeasible, UserError
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.plan import Plan
from hpcmpq.problem import Budget, Cost, Problem, Solution, Termination, relative_gap
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.solvers import make_solver
from hpcmpq.space import SearchSpace
from hpcmpq.store import RunDir, read_plan, read_quadratic, write_json


def solve(run: RunDir, budgets: Mapping[str, float], settings: SolverConfig) -> dict[str, Any]:
    """Solve for the budgets and write `solution.json`; returns its values.

    Args:
        run: A reduced run directory.
        budgets: {cost name: upper limit}.
        settings: Solver and constraints.

    Raises:
        UserError: If a budget or pattern is unknown, or the model belongs to another plan.
        Infeasible: If no assignment meets the budgets.
    """
    plan = read_plan(run)
    model = read_quadratic(run.quadratic_path)
    problem = make_problem(plan, model, budgets, settings)
    solution = solve_problem(problem, settings, uniform_hint(plan.space, problem))
    values = describe(plan, model, problem, solution, budgets, settings)
    write_json(run.solution_path, values)
    return values


def solve_problem(problem: Problem, settings: SolverConfig, hint_G: np.ndarray | None = None) -> Solution:
    """Run the configured solver.

    Raises:
        Infeasible: If no assignment meets the budgets, or none was found in time.
    """
    solution = make_solver(settings.name).solve(
        problem, time_limit_s=settings.time_limit_s, seed=settings.seed, hint_G=hint_G
    )
    if solution.termination is Termination.INFEASIBLE:
        raise Infeasible(f"no assignment meets the budgets: {solution.detail}")
    if solution.choice_G is None:
        raise Infeasible(
            f"no assignment was found within {settings.time_limit_s:g} s: {solution.detail}; "
            "raise solver.time_limit_s or the budget"
        )
    return solution


def plan_costs(plan: Plan) -> dict[str, Cost]:
    """Every cost that a budget can name, by name."""
    space, quantizer = plan.space, Quantizer(**plan.config["quantizer"])
    costs = [
        weight_bits_cost(space),
        average_bits_cost(space, quantizer),
        size_bytes_cost(space, quantizer, plan.fixed_bytes),
        bops_cost(space),
        macs_cost(space),
    ]
    return {cost.name: cost for cost in costs}


def make_problem(
    plan: Plan, model: QuadraticModel, budgets: Mapping[str, float], settings: SolverConfig
) -> Problem:
    """The optimisation problem of a plan, its quadratic model, budgets and constraints."""
    space = plan.space
    names = tuple(space.groups[option.group].name for option in space.options)
    if model.option_group != names or model.option_format != tuple(o.format for o in space.options):
        raise UserError("quadratic.h5 belongs to another plan than plan.json; run `hpcmpq reduce` again")
    costs = plan_costs(plan)
    for name, limit in budgets.items():
        if name not in costs:
            raise UserError(f"unknown budget {name!r}; known: {', '.join(costs)}")
        if not np.isfinite(limit):
            raise UserError(f"budget {name} must be a finite number, got {limit}")
    return Problem(
        linear_P=model.linear_P,
        quad_PP=np.zeros_like(model.quad_PP) if settings.drop_cross_terms else model.quad_PP,
        group_P=space.group_P,
        budgets=tuple(Budget(costs[name], float(limit)) for name, limit in budgets.items()),
        allowed_P=allowed_options(space, settings),
        ties=tied_groups(space, settings),
        constant=model.loss0,
        group_names=tuple(group.name for group in space.groups),
        option_names=tuple(option.format for option in space.options),
    )


def allowed_options(space: SearchSpace, settings: SolverConfig) -> np.ndarray:
    """bool [P]: options that fixed, forbidden, min_bits and max_bits leave.

    Raises:
        UserError: If a pattern matches nothing, a format is unknown, or a group is left without an option.
    """
    allowed_P = np.ones(space.num_options, dtype=bool)
    bits_P = np.array([FORMATS[option.format].num_bits for option in space.options])
    format_P = np.array([option.format for option in space.options])
    for pattern, name in settings.fixed.items():
        check_format(name, f"solver.fixed[{pattern}]")
        allowed_P &= ~_matching(space, pattern, "fixed") | (format_P == name)
    for pattern, names in settings.forbidden.items():
        for name in names:
            check_format(name, f"solver.forbidden[{pattern}]")
        allowed_P &= ~(_matching(space, pattern, "forbidden") & np.isin(format_P, list(names)))
    for pattern, bits in settings.min_bits.items():
        allowed_P &= ~_matching(space, pattern, "min_bits") | (bits_P >= bits)
    for pattern, bits in settings.max_bits.items():
        allowed_P &= ~_matching(space, pattern, "max_bits") | (bits_P <= bits)
    left_G = np.bincount(space.group_P, weights=allowed_P, minlength=len(space.groups))
    if not left_G.all():
        group = space.groups[int(np.argmin(left_G))].name
        raise UserError(
            f"solver.fixed, forbidden, min_bits and max_bits leave no format for group {group!r}; relax one"
        )
    return allowed_P


def tied_groups(space: SearchSpace, settings: SolverConfig) -> tuple[tuple[int, ...], ...]:
    """Group indices of every tie rule of the solver settings."""
    ties = []
    for patterns in settings.tie:
        matched = np.zeros(len(space.groups), dtype=bool)
        for pattern in patterns:
            matched[space.group_P[_matching(space, pattern, "tie")]] = True
        ties.append(tuple(np.flatnonzero(matched).tolist()))
    return tuple(ties)


def uniform_choices(space: SearchSpace) -> dict[str, np.ndarray]:
    """{format: option index per group} of every format that all groups can take, fewest bits first."""
    shared = [name for name in space.formats[0] if all(name in names for names in space.formats)]
    shared.sort(key=lambda name: FORMATS[name].num_bits)
    return {name: space.choice({g.name: name for g in space.groups}) for name in shared}


def uniform_hint(space: SearchSpace, problem: Problem) -> np.ndarray | None:
    """The best feasible uniform assignment, so that no solution is predicted worse than uniform."""
    feasible = [choice_G for choice_G in uniform_choices(space).values() if problem.is_feasible(choice_G)]
    return min(feasible, key=problem.objective, default=None)


def assignment_values(
    plan: Plan, model: QuadraticModel, problem: Problem, choice_G: np.ndarray, bound: float | None
) -> dict[str, Any]:
    """The values of `solution.json` that follow from the chosen options."""
    objective = problem.objective(choice_G)
    predicted = model.predicted_loss(choice_G)
    return {
        "assignment": plan.space.assignment(choice_G),
        "objective": objective,
        "gap": None if bound is None else relative_gap(objective, bound),
        "costs": {name: c.value(choice_G, problem.offset_G) for name, c in plan_costs(plan).items()},
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
    assert solution.choice_G is not None
    return {
        "format_version": 1,
        **assignment_values(plan, model, problem, solution.choice_G, solution.bound),
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
                "costs": {key: c.value(uniform_G, problem.offset_G) for key, c in plan_costs(plan).items()},
            }
            for name, uniform_G in uniform_choices(plan.space).items()
        },
        "fingerprint": plan.fingerprint,
    }


def parse_budget(text: str) -> tuple[str, float]:
    """('weight_bits', 3.0) of ``weight_bits=3.0``.

    Raises:
        UserError: If the text is not NAME=VALUE.
    """
    name, equals, value = text.partition("=")
    try:
        if equals:
            return name.strip(), float(value)
    except ValueError:
        pass
    raise UserError(f"--budget takes NAME=VALUE such as weight_bits=3.0, got {text!r}")


def settings_of(plan: Plan, **changes: Any) -> SolverConfig:
    """The plan's solver settings with the changes that are not None."""
    values = {**plan.config["solver"], **{k: v for k, v in changes.items() if v is not None}}
    return SolverConfig(**values)


def _matching(space: SearchSpace, pattern: str, key: str) -> np.ndarray:
    matched_G = np.array([fnmatchcase(group.name, pattern) for group in space.groups])
    if not matched_G.any():
        names = ", ".join(group.name for group in space.groups[:20])
        raise UserError(f"solver.{key}: {pattern!r} matches no group; there are: {names}")
    return matched_G[space.group_P]


def main() -> int:
    """Command line without dependencies beyond the solve path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--solver")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS")
    args = parser.parse_args()
    try:
        plan = read_plan(RunDir(args.run))
        budgets = dict(parse_budget(text) for text in args.budget) or plan.config["budgets"]
        values = solve(
            RunDir(args.run), budgets, settings_of(plan, name=args.solver, time_limit_s=args.time_limit)
        )
    except (UserError, Infeasible) as error:
        print(f"hpcmpq: {error}", file=sys.stderr)
        return 3 if isinstance(error, Infeasible) else 2
    print(f"predicted loss {values['predicted_loss']:.6g}, gap {values['gap']}, {values['termination']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
