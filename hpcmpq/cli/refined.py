"""The commands that make a solution better by measuring: other formats, and weights rounded again."""

from pathlib import Path
from typing import Any

from hpcmpq.api import stages
from hpcmpq.cli import arguments, console, summaries
from hpcmpq.cli.app import command
from hpcmpq.cli.arguments import parse_part
from hpcmpq.errors import UserError
from hpcmpq.executors import Executor, open_executor
from hpcmpq.store.run_dir import RunDir


@command("hpcmpq refine runs/quickstart --workers 2")
def refine(
    run_dir: arguments.RunPath,
    executor: arguments.ExecutorName = "local",
    workers: arguments.Workers = 0,
    part: arguments.UnitShare = "0/1",
) -> dict[str, Any] | None:
    """Improve the solution by measured losses and fit the link from predicted to measured loss.

    Interrupt at any point, the same command goes on.
    """
    share = parse_part(part)
    with open_executor(executor, workers) as pool:
        return None if pool is None else refine_on(run_dir, pool, share)


@command("hpcmpq reround runs/quickstart --method qep --workers 2")
def reround(
    run_dir: arguments.RunPath,
    method: arguments.RoundingName = None,
    strength: arguments.Strength = None,
    executor: arguments.ExecutorOrNone = None,
    workers: arguments.WorkersOrNone = None,
    part: arguments.UnitShare = "0/1",
) -> dict[str, Any] | None:
    """Round the solution's weights again, with the inputs that its rounded blocks really give.

    Kept where the loss on held-out samples falls by more than chance explains. With --workers or --executor samples and
    weights are shared out in work units. Interrupt at any point, the same command goes on.
    """
    share = parse_part(part)
    if executor is None and workers is None:
        if share[1] > 1:
            raise UserError("--part shares out work units; give --workers too")
        return reround_on(run_dir, None, method, strength)
    with open_executor(executor or "local", workers or 0) as pool:
        return None if pool is None else reround_on(run_dir, pool, method, strength, share)


def reround_on(
    run_dir: Path,
    pool: Executor | None,
    method: str | None = None,
    strength: float | None = None,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """The stage, in this process or where an executor that is open runs units."""
    console.title("reround")
    with console.counter("reround", "weights") as on_weight:
        values = stages.reround(RunDir(run_dir), method, strength, on_weight, pool, part)
    summaries.rerounded(values)
    return values


def refine_on(run_dir: Path, pool: Executor, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """The stage, where an executor that is open runs units."""
    console.title("refine")
    with console.counter("refine", "evaluations") as on_evaluation:
        values = stages.refine(RunDir(run_dir), pool, on_evaluation, part)
    summaries.refined(values)
    return values
