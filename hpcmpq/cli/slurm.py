"""What people type on a login node: submit and status."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

from hpcmpq.batch.scheduler import chosen
from hpcmpq.batch.status import Status, read_status
from hpcmpq.batch.submit import make_files, submit_files
from hpcmpq.calibrate.reduce import batches_kept, sample_ranges
from hpcmpq.cli import arguments, console, summaries
from hpcmpq.cli.app import command
from hpcmpq.cli.json_output import Watched
from hpcmpq.cli.stages import plan
from hpcmpq.cli.usage import usage_parts
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.slurm.excluded import nodes_to_exclude
from hpcmpq.slurm.usage import as_values, read_usage
from hpcmpq.solve.memory import solve_peak_bytes
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

LONGEST_S = 1e9
"""Between two looks: some systems count no further."""


@command("hpcmpq submit config.yaml --run-dir RUN --slurm partition=gpu --slurm ntasks=16")
def submit(
    config: arguments.ConfigPath,
    run_dir: arguments.RunOption,
    executor: arguments.SubmitExecutor = "mpi",
    slurm: arguments.SlurmSettings = None,
    pbs: arguments.PbsSettings = None,
    plan_on_cluster: arguments.PlanOnCluster = False,
    dry_run: arguments.DryRun = False,
) -> dict[str, Any]:
    """Plan, then submit a chain of jobs that does the rest; submit again to go on after a failure.

    To Slurm or PBS, by whose settings are given; without any to the one that is here.
    """
    from hpcmpq.config import read_config

    settings = read_config(config)
    scheduler = chosen(slurm or [], pbs or [])
    bad = nodes_to_exclude(RunDir(run_dir))
    if bad and scheduler == "slurm" and not any("exclude" in text for text in slurm or []):
        slurm = [*(slurm or []), f"exclude={','.join(bad)}"]
        console.say(f"--slurm {slurm[-1]}: units failed twice there and on no other node")

    def files_now() -> dict[str, str]:
        return make_files(
            RunDir(run_dir), config, executor, slurm or pbs or [], plan_on_cluster, scheduler=scheduler,
            refine=settings.calibration.held_out > 0, reround=settings.rounds_again,
            sharded=settings.evaluation.engine == "deepspeed", solve_bytes=_solve_bytes(RunDir(run_dir)),
        )  # fmt: skip

    files = files_now()  # what is wrong with the settings is said before anything is planned
    if dry_run:
        for name, text in files.items():
            console.say_as_is(f"# ---- {run_dir / scheduler / name}\n{text}")
        return {"files": {str(run_dir / scheduler / name): text for name, text in files.items()}}
    if not plan_on_cluster:
        plan(config, run_dir)
        files = files_now()
    jobs = submit_files(RunDir(run_dir), files, scheduler)
    for name, number in jobs.items():
        console.say_as_is(f"{name} {number}")
    return {"jobs": jobs}


def _solve_bytes(run: RunDir) -> int:
    """Memory that reducing and solving a run will take; 0 where it is not planned yet."""
    try:
        plan = read_plan(run, with_times=False, screened=False)
    except (UserError, DamagedFile):
        return 0
    num_batches = batches_kept(len(sample_ranges(plan.units)), plan.space.num_options)
    return solve_peak_bytes(plan.space, plan.config.solver, num_batches)


@command("hpcmpq status runs/quickstart")
def status(
    run_dir: arguments.RunPath,
    watch: arguments.Watch = False,
    every: arguments.Every = 2.0,
    usage: arguments.ShowUsage = False,
) -> dict[str, Any] | Watched:
    """Show stages, work units, throughput, time left, failures and jobs of a run directory.

    With --watch again and again until every stage is done; with --json too, a line each time. With --usage what
    the jobs used instead, from Slurm's accounting, and what to request the next time.
    """
    if usage:
        used = read_usage(RunDir(run_dir))
        console.show(*usage_parts(used))
        return as_values(used)
    if not watch:
        state = read_status(RunDir(run_dir))
        console.show(*summaries.status(state))
        return dataclasses.asdict(state)
    states = _states(RunDir(run_dir), every)
    first = next(states)  # what is wrong is said before anything is drawn
    return Watched(
        (dataclasses.asdict(state) for state in itertools.chain([first], states)),
        lambda: console.live(map(summaries.status, itertools.chain([first], states))),
    )


def _states(run: RunDir, every: float) -> Iterator[Status]:
    if not 0 < every <= LONGEST_S:
        raise UserError(f"--every must be a number of seconds above 0, at most {LONGEST_S:g}, got {every:g}")
    verified: set[str] = set()
    while True:
        state = read_status(run, verified)
        yield state
        if state.stages and all(stage.done for stage in state.stages):
            return
        time.sleep(every)
