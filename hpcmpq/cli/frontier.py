"""`hpcmpq frontier`: the whole trade-off curve."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcmpq.cli import arguments, completion, console
from hpcmpq.cli.app import command
from hpcmpq.errors import DamagedFile, Infeasible, UserError
from hpcmpq.settings import SolverConfig, from_values
from hpcmpq.store.json_files import read_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

NUM_STEPS = 24
"""Steps between the smallest and the largest uniform format, if not given."""

MAX_STEPS = 10_000
"""More are a slip of the finger."""

COARSE_STEPS, COARSE_TIME_S = 12, 0.5
"""The same, and solver seconds of a point, for the curve that `hpcmpq run` draws."""


@command("hpcmpq frontier runs/quickstart --cost weight_bits --from 2 --to 8 --step 0.05")
def frontier(
    run_dir: arguments.Run,
    cost: Annotated[
        str | None,
        typer.Option(
            "--cost",
            help="The cost that varies; the config's first budget.",
            autocompletion=completion.costs,
            callback=arguments.as_in_tables,
        ),
    ] = None,
    start: Annotated[
        float | None, typer.Option("--from", help="Smallest limit; that of the smallest uniform format.")
    ] = None,
    stop: Annotated[
        float | None, typer.Option("--to", help="Largest limit; that of the largest uniform format.")
    ] = None,
    step: Annotated[
        float | None, typer.Option("--step", help=f"Distance of limits; 1/{NUM_STEPS} of the range.")
    ] = None,
    budget: arguments.Budgets = None,
    solver: arguments.SolverName = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Solver time of one point.")
    ] = 2.0,
) -> dict[str, Any]:
    """Solve over a range of limits on one cost; write RUN/frontier.json, every point with its bound."""
    import numpy as np

    from hpcmpq.solve.frontier import frontier as frontier_run
    from hpcmpq.solve.frontier import uniform_range
    from hpcmpq.solve.settings import parse_budgets, settings_of

    plan = read_plan(RunDir(run_dir))
    cost = cost or next(iter(plan.config.budgets), "weight_bits")
    found = uniform_range(plan, cost)
    if found is None and (start is None or stop is None):
        raise UserError(
            f"no two uniform formats differ in {cost}, so the range is not known; give --from and --to"
        )
    start, stop = (
        (found[0] if found and start is None else start),
        (found[1] if found and stop is None else stop),
    )
    assert start is not None and stop is not None
    step = (stop - start) / NUM_STEPS if step is None else step
    if not (step > 0 and -np.inf < start <= stop < np.inf):
        raise UserError(
            f"--from {start:g} --to {stop:g} --step {step:g} is not a range; use --from below --to"
        )
    if (stop - start) / step > MAX_STEPS:
        raise UserError(f"--step {step:g} makes more than {MAX_STEPS:,} points; take a larger one")
    limits = start + step * np.arange(int((stop - start) / step + 1e-9) + 1)
    others = parse_budgets(budget or ())
    if cost in others:
        raise UserError(f"{cost} is the cost that varies; limit it with --from and --to, not with --budget")
    with console.stage(run_dir, "frontier"), console.counter("frontier", "points") as on_point:
        settings = settings_of(plan, name=solver, time_limit_s=time_limit)
        return frontier_run(RunDir(run_dir), cost, limits, others, settings, on_point)


def coarse_frontier(run_dir: Path) -> None:
    """A few points over the whole range for the report, unless there is one of this plan and these solver settings."""
    run = RunDir(run_dir)
    plan = read_plan(run)
    with suppress(DamagedFile):  # solved anew
        known = (
            read_json(run.frontier_path, f"hpcmpq frontier {run_dir}") if run.frontier_path.exists() else {}
        )
        if known.get("fingerprint") == plan.fingerprint and _solver(known) == plan.config.solver:
            return
    from hpcmpq.solve.frontier import uniform_range

    cost = next(iter(plan.config.budgets), "weight_bits")
    found = uniform_range(plan, cost)
    if found is None:
        console.say(f"frontier skipped: no two uniform formats differ in {cost}")
        return
    try:
        frontier(run_dir, cost, *found, (found[1] - found[0]) / COARSE_STEPS, time_limit=COARSE_TIME_S)
    except Infeasible as error:
        console.say(f"frontier skipped: {error}")


def _solver(frontier: dict[str, Any]) -> SolverConfig | None:
    """Its settings; None of a version with others, or before they were kept."""
    with suppress(KeyError, ValueError):
        return from_values(SolverConfig, frontier["solver"])
    return None
