"""What people type on a login node: submit and status."""

import typer

from hpcmpq import console, options
from hpcmpq.cli.app import app
from hpcmpq.cli.stages import plan
from hpcmpq.status import read_status
from hpcmpq.store import RunDir
from hpcmpq.submit import make_files, submit_files


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

    settings = read_config(config)
    files = make_files(
        RunDir(run_dir), config, executor, slurm or [], plan_on_cluster,
        refine=settings.calibration.held_out > 0, sharded=settings.evaluation.engine == "deepspeed",
    )  # fmt: skip
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
