"""The solve stage: quadratic model and budgets to `solution.json`. Needs numpy, h5py and ortools alone.

A run directory copied to a laptop solves there, also without the command line's dependencies:

    python -m hpcmpq.solve RUN --budget weight_bits=3.0 --budget size_bytes=5e9
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.config import SolverConfig
from hpcmpq.errors import Infeasible, UserError
from hpcmpq.formulate import all_limits, cost_values, make_problem, uniform_choices, uniform_hint
from hpcmpq.plan import Plan
from hpcmpq.problem import Problem, Solution, Termination, relative_gap
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.robust import robust_value, solve_robust
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir


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
    solution = solve_problem(problem, model, settings, uniform_hint(plan.space, problem))
    values = describe(plan, model, problem, solution, budgets, settings)
    write_artefact(run.solution_path, values)
    return values


def solve_problem(
    problem: Problem, model: QuadraticModel, settings: SolverConfig, hint_G: np.ndarray | None = None
) -> Solution:
    """An assignment by the configured solver, see `find_solution`.

    Raises:
        Infeasible: If no assignment meets the budgets, or none was found in time.
        UserError: If robust_k is asked of a calibration that has no separate batches.
    """
    solution = find_solution(problem, model, settings, hint_G)
    if solution.termination is Termination.INFEASIBLE:
        raise Infeasible(f"no assignment meets the budgets: {solution.detail}")
    if solution.choice_G is None:
        raise Infeasible(
            f"no assignment was found within {settings.time_limit_s:g} s: {solution.detail}; "
            "raise solver.time_limit_s or the budget"
        )
    return solution


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


def parse_budgets(texts: Iterable[str]) -> dict[str, float]:
    """{cost name: limit} of all that `--budget` was given; of two limits on one cost the smaller.

    Raises:
        UserError: If a text is not NAME=VALUE.
    """
    return all_limits(map(parse_budget, texts))


def settings_of(plan: Plan, **changes: Any) -> SolverConfig:
    """The plan's solver settings with the changes that are not None.

    Raises:
        UserError: If the time limit is not above 0.
    """
    values = {**plan.config["solver"], **{k: v for k, v in changes.items() if v is not None}}
    if not values["time_limit_s"] > 0:
        raise UserError(f"--time-limit must be a number of seconds above 0, got {values['time_limit_s']:g}")
    return SolverConfig(**values)


def main() -> int:
    """Command line without dependencies beyond the solve path."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--budget", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--solver")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS")
    args = parser.parse_args()
    try:
        plan = read_plan(RunDir(args.run))
        budgets = parse_budgets(args.budget) or plan.config["budgets"]
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
