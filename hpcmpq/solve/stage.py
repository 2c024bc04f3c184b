"""The solve stage: quadratic model and budgets to `solution.json`, by the libraries of `hpcmpq.solve.__main__`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hpcmpq.errors import Infeasible
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import make_problem, uniform_hint
from hpcmpq.solve.outcome import describe, solve_problem
from hpcmpq.solve.screened import of_unmeasured, screening_values
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.of_solution import proven_facts
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir


def solve(run: RunDir, budgets: Mapping[str, float], settings: SolverConfig) -> dict[str, Any]:
    """Solve for the budgets and write `solution.json`; returns its values. `proof.json` has how the bound came about.

    Args:
        run: A reduced run directory.
        budgets: {cost name: upper limit}.
        settings: Solver and constraints.

    Raises:
        UserError: If a budget or pattern is unknown, or the model belongs to another plan.
        Infeasible: If no assignment meets the budgets.
    """
    plan = read_plan(run)
    model = shrunk(read_quadratic(run.quadratic_path, plan), settings.shrink)
    problem = make_problem(plan, model, budgets, settings)
    try:
        solution = solve_problem(problem, model, settings, uniform_hint(plan.space, problem))
    except Infeasible as error:
        raise Infeasible(f"{error}{of_unmeasured(plan, run.path, budgets)}") from None
    values = describe(plan, model, problem, solution, budgets, settings)
    assert solution.choice_G is not None
    values |= screening_values(run, plan, model, solution.choice_G, budgets, settings)
    lines = [{**dataclasses.asdict(line), "gap": line.gap} for line in solution.proof]
    proof = {"lines": lines, "part_s": solution.part_s, "detail": solution.detail}
    write_artefact(run.file("proof.json"), {**proof, **proven_facts(values)})
    write_artefact(run.solution_path, values)
    return values
