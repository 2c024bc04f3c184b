"""`hpcmpq track`: a run beside others in an experiment tracker."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hpcmpq.cli import arguments, console
from hpcmpq.cli.app import command
from hpcmpq.store.run_dir import RunDir


@command("hpcmpq track runs/quickstart --directory mlruns")
def track(
    run_dir: arguments.RunPath,
    directory: Annotated[
        Path | None, typer.Option("--directory", help="Of MLflow; `mlruns` beside the run directory.")
    ] = None,
) -> dict[str, Any]:
    """Add the run's settings, numbers, frontier and files to a directory of MLflow; each call adds one entry."""
    from hpcmpq.tracking.mlflow_runs import track as track_run

    run = RunDir(run_dir)
    place = run.path.resolve().parent / "mlruns" if directory is None else directory
    number = track_run(run, place)
    console.say(f"run {number} in {place}; look at it with `mlflow ui --backend-store-uri {place}`")
    return {"directory": place, "run_id": number}
