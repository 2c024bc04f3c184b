"""`hpcmpq frontier`: the whole trade-off curve."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hpcmpq.api import limits
from hpcmpq.api.limits import NUM_STEPS, POINT_S
from hpcmpq.cli import arguments, completion, console
from hpcmpq.cli.app import command
from hpcmpq.store.run_dir import RunDir


@command("hpcmpq frontier runs/quickstart --cost weight_bits --from 2 --to 8 --step 0.05")
def frontier(
    run_dir: arguments.RunPath,
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
    ] = POINT_S,
) -> dict[str, Any]:
    """Solve over a range of limits on one cost; write RUN/frontier.json, every point with its bound."""
    from hpcmpq.solve.settings import parse_budgets

    console.title("frontier")
    others = parse_budgets(budget or ())
    with console.counter("frontier", "points") as on_point:
        return limits.frontier(
            RunDir(run_dir), cost, start, stop, step, others, solver, time_limit, on_point=on_point
        )


def coarse_frontier(run_dir: Path) -> None:
    """The curve that a whole run draws."""
    console.title("frontier")
    with console.counter("frontier", "points") as on_point:
        why_none = limits.coarse_frontier(RunDir(run_dir), on_point)
    if why_none is not None:
        console.say(f"frontier skipped: {why_none}")
