"""`hpcmpq frontier`: the whole trade-off curve."""

from typing import Annotated, Any

import typer

from hpcmpq import completion, console, options
from hpcmpq.cli.app import command
from hpcmpq.errors import UserError
from hpcmpq.store import RunDir, read_plan


@command("hpcmpq frontier runs/quickstart --cost weight_bits --from 2 --to 8 --step 0.05")
def frontier(
    run_dir: options.Run,
    cost: Annotated[
        str, typer.Option("--cost", help="The cost that varies.", autocompletion=completion.costs)
    ] = "weight_bits",
    start: Annotated[float, typer.Option("--from", help="Smallest limit.")] = 2.0,
    stop: Annotated[float, typer.Option("--to", help="Largest limit.")] = 8.0,
    step: Annotated[float, typer.Option("--step", help="Distance of limits.")] = 0.05,
    budget: options.Budgets = None,
    solver: options.SolverName = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Solver time of one point.")
    ] = 2.0,
) -> dict[str, Any]:
    """Solve over a range of limits on one cost; write RUN/frontier.json, every point with its bound."""
    import numpy as np

    from hpcmpq.frontier import frontier as frontier_run
    from hpcmpq.solve import parse_budget, settings_of

    if not (step > 0 and stop >= start):
        raise UserError(
            f"--from {start:g} --to {stop:g} --step {step:g} is not a range; use --from below --to"
        )
    limits = start + step * np.arange(int((stop - start) / step + 1e-9) + 1)
    with console.stage(run_dir, "frontier"), console.counter("frontier", "points") as on_point:
        settings = settings_of(read_plan(RunDir(run_dir)), name=solver, time_limit_s=time_limit)
        others = dict(parse_budget(text) for text in budget or ())
        return frontier_run(RunDir(run_dir), cost, limits, others, settings, on_point)
