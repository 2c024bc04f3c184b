"""One command per stage; `run` chains them. What a stage does by default stands in `hpcmpq.api.stages`."""

import logging
from pathlib import Path
from typing import Any

from hpcmpq.api import stages
from hpcmpq.cli import arguments, console, predictions, run_summary, several, summaries
from hpcmpq.cli.app import command
from hpcmpq.cli.first_config import config_of
from hpcmpq.errors import UserError
from hpcmpq.executors import Executor, open_executor
from hpcmpq.executors.world import ALONE, World, find_world
from hpcmpq.store.json_files import read_json
from hpcmpq.store.measured_times import on_time
from hpcmpq.store.of_solution import VERIFICATION, read_proof
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution


@command("hpcmpq run configs/quickstart.yaml --run-dir runs/quickstart --workers 2")
def run(
    config: arguments.ConfigOrModel,
    run_dir: arguments.RunOption,
    executor: arguments.ExecutorName = "local",
    workers: arguments.Workers = 0,
    data: arguments.DataFile = None,
    budget: arguments.Budgets = None,
) -> dict[str, Any] | None:
    """Every stage from plan to report. The same command resumes.

    Of a model directory or a GGUF file with --data, the config that `hpcmpq init` would write is kept in
    RUN/config.yaml and printed. For a budget on a time, such as latency_s, this machine's times are measured first,
    unless `hpcmpq time` has.
    """
    # After this file: --help lists commands as they come.
    from hpcmpq.cli.frontier import coarse_frontier
    from hpcmpq.cli.refined import refine_on, reround_on
    from hpcmpq.solve.feasibility import check_solvable

    with open_executor(executor, workers) as pool:
        if pool is None:
            return None  # this process served the units of another
        plan(config_of(config, run_dir, data, budget or []), run_dir)
        planned = read_plan(RunDir(run_dir))
        if on_time(planned.config.budgets):
            if planned.times is None:
                time(run_dir)
            check_solvable(read_plan(RunDir(run_dir)))
        _calibrate(run_dir, pool)
        reduce(run_dir)
        solve(run_dir)
        if planned.config.calibration.held_out:
            refine_on(run_dir, pool)
        else:
            console.say("refine skipped: calibration.held_out is 0")
        if planned.config.rounds_again:
            reround_on(run_dir, pool)
        coarse_frontier(run_dir)
        export(run_dir)
        evaluation = _evaluate(run_dir, None, ALONE)
        assert evaluation is not None
        written = report(run_dir)
        run_summary.summary(RunDir(run_dir), evaluation)
    solution = read_solution(RunDir(run_dir))
    return {"run": run_dir, "solution": solution, "evaluation": evaluation, **written}


@command("hpcmpq plan configs/quickstart.yaml --run-dir runs/quickstart; hpcmpq plan config.json --dry")
def plan(
    config: arguments.PlannedConfig,
    run_dir: arguments.RunOrNone = None,
    workers: arguments.PredictWorkers = 0,
    dry: arguments.Dry = False,
    tflops: arguments.TeraFlops = predictions.TFLOPS,
) -> dict[str, Any]:
    """Look at the model and the data; write RUN/plan.json. With --workers, say how long N workers take.

    With --dry, of a config or a model's config.json alone: what would be planned, its bytes, device hours and memory.
    """
    from hpcmpq.config import read_config

    console.title("plan")
    if dry:
        return predictions.dry(config, tflops)
    if run_dir is None:
        raise UserError("say where with --run-dir RUN, or give --dry to predict without writing anything")
    run, import_paths = RunDir(run_dir), (str(Path.cwd()), str(config.resolve().parent))
    made = stages.plan(read_config(config), run, import_paths)
    summaries.planned(made)
    values = {"plan": run.plan_path, **predictions.counts(made), "fingerprint": made.fingerprint}
    if run.file("cost.json").exists():
        values["cost"] = read_json(run.file("cost.json"), "hpcmpq plan")
        summaries.cost(values["cost"])
    if workers:
        values |= predictions.of_missing(run, workers)
    return values


@command("hpcmpq calibrate runs/quickstart --workers 2; hpcmpq calibrate runs/a runs/b --workers 8")
def calibrate(
    run_dirs: arguments.RunPaths,
    executor: arguments.ExecutorName = "local",
    workers: arguments.Workers = 0,
    part: arguments.UnitShare = "0/1",
    at_most: arguments.AtMost = None,
) -> dict[str, Any] | None:
    """Measure the missing work units; interrupt at any point, the same command goes on.

    Of several runs a worker goes on with another where no unit of its own waits; other stages take one run at a time.
    """
    share = arguments.parse_part(part)
    if len(run_dirs) > 1:
        return several.calibrate(run_dirs, executor, workers, share, at_most)
    with open_executor(executor, workers) as pool:
        if pool is None:
            return None
        num_done, num_units = _calibrate(run_dirs[0], pool, share, at_most)
    return {"num_units": num_units, "num_done": num_done}


@command("hpcmpq reduce runs/quickstart")
def reduce(run_dir: arguments.RunPath) -> dict[str, Any]:
    """Add up the shards into RUN/quadratic.h5."""
    console.title("reduce")
    found = stages.reduce(RunDir(run_dir))
    summaries.reduced(found)
    facts = {name: getattr(found.model, name) for name in ("objective", "loss0", "num_samples")}
    return {"quadratic": RunDir(run_dir).quadratic_path, **facts, "asymmetry": float(found.asymmetry)}


@command("hpcmpq solve runs/quickstart --budget weight_bits=2.5 --budget size_bytes=500000")
def solve(
    run_dir: arguments.RunPath,
    budget: arguments.Budgets = None,
    solver: arguments.SolverName = None,
    time_limit: arguments.TimeLimit = None,
    maximize: arguments.Gain = None,
    max_loss_mse: arguments.MaxLossMse = None,
    max_loss: arguments.MaxLoss = None,
    verbose: arguments.Verbose = False,
) -> dict[str, Any]:
    """Choose a format per group within the budgets; write RUN/solution.json with a proven bound."""
    from hpcmpq.solve.largest_gain import GAINS
    from hpcmpq.solve.settings import parse_budgets

    console.title("solve")
    run, given = RunDir(run_dir), parse_budgets(budget or ())
    if maximize is None and max_loss_mse is None and max_loss is None:
        values = stages.solve(run, given, solver, time_limit)
        summaries.solved(values)
        if verbose:
            summaries.proof(read_proof(run, values))
        return values
    if maximize is None:
        raise UserError(f"--max-loss-mse and --max-loss need --maximize, one of {', '.join(GAINS)}")
    if verbose:
        raise UserError("--verbose shows the proof of the least loss; leave it out with --maximize")
    values = stages.maximize(run, maximize, (max_loss_mse, max_loss), given, solver, time_limit)
    summaries.gained(values)
    return values


@command("hpcmpq export runs/quickstart --format compressed_tensors; see docs/export.md for engines")
def export(
    run_dir: arguments.RunPath, format: arguments.ExportFormat = None, no_verify: arguments.NoVerify = False
) -> dict[str, Any]:
    """Write the quantized model: to RUN/checkpoint with its own layout, or to RUN/exports/FORMAT for an engine.

    Without --format, the former, and the latter too if the config names a target. What is written is read back by its
    reader; if the outputs are not those of the run's model, nothing of it is kept.
    """
    console.title("export")
    written = stages.export(RunDir(run_dir), format, not no_verify)
    for _, line in written.values():
        console.say(line)
    return {
        "exports": {
            name: {
                "directory": directory,
                "summary": line,
                "verification": read_json(directory / VERIFICATION, "hpcmpq export"),
            }
            for name, (directory, line) in written.items()
        }
    }


@command("hpcmpq time runs/quickstart")
def time(run_dir: arguments.RunPath) -> dict[str, Any]:
    """Measure sub-graphs in their formats on this machine, for the budget latency_s; write RUN/time.json."""
    console.title("time")
    with console.counter("time", "rounds") as on_round:
        values = stages.measure_time(RunDir(run_dir), on_round)
    summaries.timed(values)
    return values


@command("hpcmpq evaluate runs/quickstart --workers 2")
def evaluate(
    run_dir: arguments.RunPath,
    engine: arguments.EngineName = None,
    executor: arguments.ExecutorOrNone = None,
    workers: arguments.WorkersOrNone = None,
    part: arguments.UnitShare = "0/1",
) -> dict[str, Any] | None:
    """Measure original, quantized and uniform models on held-out samples; write RUN/evaluation.json.

    With --workers or --executor samples are shared out in work units. With engine deepspeed, under its launcher,
    mpiexec or srun, all ranks share the work. Interrupt at any point, the same command goes on.
    """
    share = arguments.parse_part(part)
    if executor is None and workers is None:
        if share[1] > 1:
            raise UserError("--part shares out work units; give --workers too")
        return _evaluate(run_dir, engine, find_world())
    with open_executor(executor or "local", workers or 0) as pool:
        return None if pool is None else _evaluate(run_dir, engine, ALONE, pool, share)


@command("hpcmpq report runs/quickstart")
def report(run_dir: arguments.RunPath) -> dict[str, Any]:
    """Write RUN/report.html, one self-contained page, and its figures and tables to RUN/report/."""
    console.title("report")
    path = stages.report(RunDir(run_dir))
    console.say(f"report in {path}")
    return {"report": path}


def _calibrate(
    run_dir: Path, pool: Executor, part: tuple[int, int] = (0, 1), at_most: int | None = None
) -> tuple[int, int]:
    run = RunDir(run_dir)
    if stages.has_codes(run):
        console.title("round")
        with console.progress("round", "unit", at_most) as on_outcome:
            if not stages.round_options(run, pool, on_outcome, part, at_most):
                return stages.units_done(run)  # stopped by `at_most`
    console.title("calibrate")
    with console.progress("calibrate", "unit", at_most) as on_outcome:
        return stages.calibrate(run, pool, on_outcome, part, at_most)


def _evaluate(
    run_dir: Path,
    engine: str | None,
    world: World,
    pool: Executor | None = None,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any] | None:
    if world.rank > 0:
        logging.getLogger().setLevel(logging.ERROR)  # rank 0 says it
        stages.evaluate(RunDir(run_dir), engine, world)
        return None
    console.title("evaluate")
    with console.counter("evaluate", "chunks" if pool is None else "units") as on_progress:
        values = stages.evaluate(RunDir(run_dir), engine, world, on_progress, pool, part)
    summaries.evaluated(values)
    return values
