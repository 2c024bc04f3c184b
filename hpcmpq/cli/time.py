"""`hpcmpq time`, measured times of sub-graphs, and `hpcmpq solve --maximize`, the largest gain from them."""

from pathlib import Path
from typing import Any

from hpcmpq.cli import arguments, console, summaries
from hpcmpq.cli.app import command
from hpcmpq.errors import UserError
from hpcmpq.settings import SolverConfig
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir


@command("hpcmpq time runs/quickstart")
def time(run_dir: arguments.Run) -> dict[str, Any]:
    """Measure sub-graphs in their formats on this machine, for the budget latency_s; write RUN/time.json."""
    from hpcmpq.timing import measure_times

    with console.stage(run_dir, "time"), console.counter("time", "rounds") as on_round:
        values = measure_times(RunDir(run_dir), on_round)
    summaries.timed(values)
    return values


def solve_for_gain(
    run_dir: Path,
    gain: str | None,
    limits: tuple[float | None, float | None],
    budgets: dict[str, float],
    settings: SolverConfig,
) -> dict[str, Any]:
    """`hpcmpq solve --maximize`: the largest gain within a loss, given as share of its mean square or as it is."""
    from hpcmpq.solve.largest_gain import GAINS, loss_limit, maximize

    if gain is None:
        raise UserError(
            f"--max-loss-mse and --max-loss need --maximize with what to gain: {', '.join(GAINS)}"
        )
    run = RunDir(run_dir)
    limit = loss_limit(read_quadratic(run.quadratic_path), *limits)
    values = maximize(run, gain, limit, budgets, settings)
    summaries.gained(values)
    return values
