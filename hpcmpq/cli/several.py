"""`hpcmpq calibrate RUN RUN ...`: several runs on the same workers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hpcmpq.api import stages
from hpcmpq.api.several import calibrate_several, check_together
from hpcmpq.cli import console
from hpcmpq.cli.json_output import Reported
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.executors import open_executor
from hpcmpq.executors.desk import SEVERAL, DeskPool
from hpcmpq.plan import UnitOutcome
from hpcmpq.store.run_dir import RunDir


def calibrate(
    run_dirs: Sequence[Path], executor: str, workers: int, part: tuple[int, int], at_most: int | None
) -> dict[str, Any] | None:
    """Calibrate all runs; what --json prints, or None in a process that only serves another.

    Raises:
        Reported: If a run is not calibrated; with what is done of each.
        UserError: If this executor serves one run at a time, or no worker can start.
    """
    if executor not in SEVERAL:
        raise UserError(
            f"--executor {executor} serves one run at a time; give one RUN, or --executor {' or '.join(SEVERAL)}"
        )
    runs = [RunDir(path) for path in run_dirs]
    with open_executor(executor, workers) as pool:
        if pool is None:
            return None
        check_together(runs)
        console.title("calibrate")
        with console.progress_of([str(run.path) for run in runs], "unit") as shown:
            measured: set[RunDir] = set()

            def seen(run: RunDir, stage: str, outcome: UnitOutcome, done: int, total: int) -> None:
                measured.add(run)
                shown(str(run.path), stage, outcome, done, total)

            errors = calibrate_several(runs, cast(DeskPool, pool), seen, part, at_most)
    values = {str(run.path): _standing(run, errors.get(run)) for run in runs}
    for run in runs:
        own = values[str(run.path)]
        if run not in errors and run not in measured and own["num_done"] == own["num_units"]:
            console.say(f"{run.path}: every unit is done already")
    if errors:
        told = "; ".join(f"{run.path}: {error}" for run, error in errors.items())
        raise Reported(f"{len(errors)} of {len(runs)} runs failed, {told}", {"runs": values})
    return {"runs": values}


def _standing(run: RunDir, error: Exception | None) -> dict[str, int | str | None]:
    """What is done of a run; None where the plan cannot be read."""
    said = None if error is None else str(error)
    try:
        num_done, num_units = stages.units_done(run)
    except (UserError, DamagedFile):
        return {"num_units": None, "num_done": None, "error": said}
    return {"num_units": num_units, "num_done": num_done, "error": said}
