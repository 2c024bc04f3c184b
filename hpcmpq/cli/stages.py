"""One command per stage; `run` chains them."""

import logging
from pathlib import Path

from hpcmpq import console, options
from hpcmpq.attempts import read_processes
from hpcmpq.cli.app import app
from hpcmpq.cli.timing import solve_for_gain
from hpcmpq.executors import Executor, open_executor
from hpcmpq.plan import parse_part
from hpcmpq.scaling import Site, measured_workload, predict
from hpcmpq.store import RunDir, pending, read_json, read_plan
from hpcmpq.targets import find_target
from hpcmpq.world import ALONE, World, find_world


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
        _evaluate(run_dir, None, ALONE)
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
    maximize: options.Gain = None,
    max_loss_mse: options.MaxLossMse = None,
    max_loss: options.MaxLoss = None,
) -> None:
    """Choose a format per group within the budgets; write RUN/solution.json with a proven bound."""
    from hpcmpq.solve import parse_budget, settings_of
    from hpcmpq.solve import solve as solve_run

    with console.stage(run_dir, "solve"):
        planned = read_plan(RunDir(run_dir))
        given = dict(parse_budget(text) for text in budget or ())
        settings = settings_of(planned, name=solver, time_limit_s=time_limit)
        if maximize is not None or max_loss_mse is not None or max_loss is not None:
            solve_for_gain(run_dir, maximize, (max_loss_mse, max_loss), given, settings)
        else:
            console.solved(solve_run(RunDir(run_dir), given or planned.config["budgets"], settings))


@app.command(epilog="Example: hpcmpq refine runs/quickstart")
def refine(run_dir: options.Run) -> None:
    """Improve the solution by measured losses and fit the link from predicted to measured loss."""
    from hpcmpq.refine import refine as refine_run

    with console.stage(run_dir, "refine"), console.counter("refine", "evaluations") as on_evaluation:
        values = refine_run(RunDir(run_dir), on_evaluation)
    console.refined(values)


@app.command(
    epilog="Example: hpcmpq export runs/quickstart --format compressed_tensors; see docs/export.md for engines"
)
def export(run_dir: options.Run, format: options.ExportFormat = None) -> None:
    """Write the quantized model: to RUN/checkpoint with its own layout, or to RUN/exports/FORMAT for an engine.

    Without --format, the former, and the latter too if the config names a target.
    """
    from hpcmpq.export import export as export_run

    names = [format] if format else ["fake_quantized"]
    if not format and (target := read_plan(RunDir(run_dir)).config.get("target")):
        names.append(find_target(target).export)
    with console.stage(run_dir, "export"):
        for name in names:
            console.say(export_run(RunDir(run_dir), name))


@app.command(epilog="Example: srun --ntasks=4 hpcmpq evaluate runs/quickstart --engine deepspeed")
def evaluate(run_dir: options.Run, engine: options.EngineName = None) -> None:
    """Measure original, quantized and uniform models on held-out samples; write RUN/evaluation.json.

    Under the deepspeed launcher, mpiexec or srun all ranks share the work; interrupt at any point, the same
    command goes on.
    """
    _evaluate(run_dir, engine, find_world())


@app.command(epilog="Example: hpcmpq report runs/quickstart")
def report(run_dir: options.Run) -> None:
    """Write RUN/report.html, one self-contained page."""
    from hpcmpq.report import write_report

    with console.stage(run_dir, "report"):
        console.say(f"report in {write_report(RunDir(run_dir))}")


def _calibrate(
    run_dir: Path, pool: Executor, part: tuple[int, int] = (0, 1), at_most: int | None = None
) -> None:
    from hpcmpq.calibrate import calibrate as calibrate_run

    with console.stage(run_dir, "calibrate"), console.progress("calibrate", "unit") as on_outcome:
        calibrate_run(RunDir(run_dir), pool, on_outcome, part, at_most)


def _evaluate(run_dir: Path, engine: str | None, world: World) -> None:
    from hpcmpq.evaluate import evaluate as evaluate_run

    if world.rank > 0:
        logging.getLogger().setLevel(logging.ERROR)  # rank 0 says it
        evaluate_run(RunDir(run_dir), engine, world)
        return
    with console.stage(run_dir, "evaluate"), console.counter("evaluate", "chunks") as on_progress:
        values = evaluate_run(RunDir(run_dir), engine, world, on_progress)
    console.evaluated(values)
