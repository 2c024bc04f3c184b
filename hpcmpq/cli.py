"""The command line: one subcommand per stage; `run` chains them."""

import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcmpq import __version__, console, options
from hpcmpq.attempts import read_processes
from hpcmpq.errors import Infeasible, Interrupted, UserError, exit_status
from hpcmpq.executors import Executor, open_executor
from hpcmpq.plan import parse_part
from hpcmpq.scaling import Site, measured_workload, predict
from hpcmpq.status import read_status
from hpcmpq.store import RunDir, pending, read_json, read_plan

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Choose how many bits each part of a trained network gets, within a budget, with a proven bound.",
    epilog="Start with: hpcmpq run configs/quickstart.yaml --run-dir runs/quickstart",
)


@app.command(epilog="Example: hpcmpq run configs/quickstart.yaml --run-dir runs/quickstart --workers 2")
def run(
    config: options.ConfigPath,
    run_dir: options.RunOption,
    executor: options.ExecutorName = "local",
    workers: options.Workers = 0,
) -> None:
    """Every stage from plan to report. The same command resumes."""
    with open_executor(executor, workers) as pool:
        if pool is None:
            return  # this process served the units of another
        plan(config, run_dir)
        _calibrate(run_dir, pool)
        reduce(run_dir)
        solve(run_dir)
        if read_plan(RunDir(run_dir)).config["calibration"]["held_out"]:
            refine(run_dir)
        else:
            console.say("refine skipped: calibration.held_out is 0")
        export(run_dir)
        evaluate(run_dir)
        report(run_dir)
        console.summary(RunDir(run_dir))


@app.command(epilog="Example: hpcmpq plan configs/quickstart.yaml --run-dir runs/quickstart")
def plan(config: options.ConfigPath, run_dir: options.RunOption, workers: options.PredictWorkers = 0) -> None:
    """Look at the model and the data; write RUN/plan.json. With --workers, say how long N workers take."""
    from hpcmpq.config import read_config
    from hpcmpq.prepare import prepare

    with console.stage(run_dir, "plan"):
        settings = read_config(config)
        made = prepare(settings, RunDir(run_dir), (str(Path.cwd()), str(config.resolve().parent)))
    console.planned(made)
    if RunDir(run_dir).file("cost.json").exists():
        console.cost(read_json(RunDir(run_dir).file("cost.json"), "hpcmpq plan"))
    if workers:
        missing, _ = pending(made, RunDir(run_dir))
        work = measured_workload(made, read_processes(RunDir(run_dir)), missing)
        console.predicted(
            [predict(work, Site(), count) for count in sorted({1, 2, workers // 2 or 1, workers})]
        )


@app.command(epilog="Example: hpcmpq calibrate runs/quickstart --workers 2")
def calibrate(
    run_dir: options.Run,
    executor: options.ExecutorName = "local",
    workers: options.Workers = 0,
    part: options.Part = "0/1",
    at_most: options.AtMost = None,
) -> None:
    """Measure the missing work units; interrupt at any point, the same command goes on."""
    index, num_parts = parse_part(part)
    with open_executor(executor, workers) as pool:
        if pool is not None:
            _calibrate(run_dir, pool, (index, num_parts), at_most)


@app.command(epilog="Example: hpcmpq reduce runs/quickstart")
def reduce(run_dir: options.Run) -> None:
    """Add up the shards into RUN/quadratic.h5."""
    from hpcmpq.reduce import reduce as reduce_run

    with console.stage(run_dir, "reduce"):
        console.reduced(reduce_run(RunDir(run_dir)))


@app.command(
    epilog="Example: hpcmpq solve runs/quickstart --budget weight_bits=2.5 --budget size_bytes=500000"
)
def solve(
    run_dir: options.Run,
    budget: options.Budgets = None,
    solver: options.SolverName = None,
    time_limit: options.TimeLimit = None,
) -> None:
    """Choose a format per group within the budgets; write RUN/solution.json with a proven bound."""
    from hpcmpq.solve import parse_budget, settings_of
    from hpcmpq.solve import solve as solve_run

    with console.stage(run_dir, "solve"):
        planned = read_plan(RunDir(run_dir))
        budgets = dict(parse_budget(text) for text in budget or ()) or planned.config["budgets"]
        settings = settings_of(planned, name=solver, time_limit_s=time_limit)
        console.solved(solve_run(RunDir(run_dir), budgets, settings))


@app.command(epilog="Example: hpcmpq frontier runs/quickstart --cost weight_bits --from 2 --to 8 --step 0.05")
def frontier(
    run_dir: options.Run,
    cost: Annotated[str, typer.Option("--cost", help="The cost that varies.")] = "weight_bits",
    start: Annotated[float, typer.Option("--from", help="Smallest limit.")] = 2.0,
    stop: Annotated[float, typer.Option("--to", help="Largest limit.")] = 8.0,
    step: Annotated[float, typer.Option("--step", help="Distance of limits.")] = 0.05,
    budget: options.Budgets = None,
    solver: options.SolverName = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Solver time of one point.")
    ] = 2.0,
) -> None:
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
        frontier_run(RunDir(run_dir), cost, limits, others, settings, on_point)


@app.command(epilog="Example: hpcmpq refine runs/quickstart")
def refine(run_dir: options.Run) -> None:
    """Improve the solution by measured losses and fit the link from predicted to measured loss."""
    from hpcmpq.refine import refine as refine_run

    with console.stage(run_dir, "refine"), console.counter("refine", "evaluations") as on_evaluation:
        values = refine_run(RunDir(run_dir), on_evaluation)
    console.refined(values)


@app.command(epilog="Example: hpcmpq export runs/quickstart --format fake_quantized")
def export(run_dir: options.Run, format: options.ExportFormat = "fake_quantized") -> None:
    """Write the quantized model to RUN/checkpoint."""
    from hpcmpq.export import export as export_run

    with console.stage(run_dir, "export"):
        console.say(export_run(RunDir(run_dir), format))


@app.command(epilog="Example: hpcmpq evaluate runs/quickstart")
def evaluate(run_dir: options.Run) -> None:
    """Measure original, quantized and uniform models on held-out samples; write RUN/evaluation.json."""
    from hpcmpq.evaluate import evaluate as evaluate_run

    with console.stage(run_dir, "evaluate"):
        console.evaluated(evaluate_run(RunDir(run_dir)))


@app.command(epilog="Example: hpcmpq report runs/quickstart")
def report(run_dir: options.Run) -> None:
    """Write RUN/report.html, one self-contained page."""
    from hpcmpq.report import write_report

    with console.stage(run_dir, "report"):
        console.say(f"report in {write_report(RunDir(run_dir))}")


@app.command(
    epilog="Example: hpcmpq submit config.yaml --run-dir RUN --slurm partition=gpu --slurm ntasks=16"
)
def submit(
    config: options.ConfigPath,
    run_dir: options.RunOption,
    executor: options.SubmitExecutor = "mpi",
    slurm: options.SlurmSettings = None,
    plan_on_cluster: options.PlanOnCluster = False,
    dry_run: options.DryRun = False,
) -> None:
    """Plan, then submit a chain of Slurm jobs that does the rest; submit again to go on after a failure."""
    from hpcmpq.config import read_config
    from hpcmpq.submit import make_files, submit_files

    held_out = read_config(config).calibration.held_out
    files = make_files(RunDir(run_dir), config, executor, slurm or [], plan_on_cluster, refine=held_out > 0)
    if dry_run:
        for name, text in files.items():
            typer.echo(f"# ---- {run_dir / 'slurm' / name}\n{text}")
        return
    if not plan_on_cluster:
        plan(config, run_dir)
    for name, number in submit_files(RunDir(run_dir), files).items():
        typer.echo(f"{name} {number}")


@app.command(epilog="Example: hpcmpq status runs/quickstart")
def status(run_dir: options.Run) -> None:
    """Show stages, work units, throughput, time left, failures and Slurm jobs of a run directory."""
    console.status(read_status(RunDir(run_dir)))


def _calibrate(
    run_dir: Path, pool: Executor, part: tuple[int, int] = (0, 1), at_most: int | None = None
) -> None:
    from hpcmpq.calibrate import calibrate as calibrate_run

    with console.stage(run_dir, "calibrate"), console.progress("calibrate", "unit") as on_outcome:
        calibrate_run(RunDir(run_dir), pool, on_outcome, part, at_most)


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(signal.Signals(number).name)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"hpcmpq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.ERROR if quiet else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    for name in ("transformers", "httpx", "ray", "matplotlib", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    console.set_quiet(quiet)


def main() -> None:
    """Entry point: exit status 0 done, 2 bad input, 3 infeasible, 75 interrupted and resumable."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _interrupt)
    try:
        app()
    except (UserError, Infeasible, Interrupted) as error:
        print(f"hpcmpq: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


if __name__ == "__main__":
    main()
