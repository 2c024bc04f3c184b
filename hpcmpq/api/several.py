"""Several runs calibrated at once: workers that go on with another run where no unit of their own waits.

With one process that hands out units all runs go side by side, each with its share of the workers. Of several processes
that share run directories, such as tasks of an array, each begins with another run.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from hpcmpq.api.stages import has_codes, stage
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.executors.batches import Batches
from hpcmpq.executors.desk import DeskPool, SharedDesk
from hpcmpq.plan import UnitOutcome
from hpcmpq.settings import is_factory
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

log = logging.getLogger(__name__)

COPY = "HPCMPQ_MODEL_DIR"
"""What the job of one run calls its copy of the model, see `slurm/env.sh`."""

Seen = Callable[[RunDir, str, UnitOutcome, int, int], None]
"""Called with a run, `round` or `calibrate`, an outcome, the number of units done and of all units."""


def calibrate_several(
    runs: Sequence[RunDir],
    pool: DeskPool,
    on_outcome: Seen,
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> dict[RunDir, Exception]:
    """Calibrate each run as `hpcmpq.api.stages.calibrate` does, with what comes before.

    Args:
        runs: Planned run directories that `check_together` lets pass.
        pool: Where units run.
        on_outcome: What to tell of each outcome.
        part: As there, of every run.
        at_most: As there, of every run.

    Returns:
        {run that is over without being done: why}; the others go on.

    Raises:
        UserError: If no worker can start for any run.
    """
    first = part[0] % len(runs)
    ordered = [*runs[first:], *runs[:first]]
    errors: dict[RunDir, Exception] = {}

    def over(number: int, error: Exception) -> None:
        errors[ordered[number]] = error
        log.warning("%s is over: %s", ordered[number].path, error)

    wanted = [_batches(run, partial(on_outcome, run), part, at_most) for run in ordered]
    desk = SharedDesk(wanted, over, pool.num_workers, at_once=part[1] == 1)
    with closing(pool.hand_out(desk, keep=True)) as outcomes:
        for backlog, outcome in outcomes:
            desk.seen(backlog, outcome)
    return errors


def _batches(
    run: RunDir,
    on_outcome: Callable[[str, UnitOutcome, int, int], None],
    part: tuple[int, int],
    at_most: int | None,
) -> Batches[None]:
    """What `round_options` and `calibrate` of `hpcmpq.api.stages` measure of one run."""
    if has_codes(run):
        from hpcmpq.rounding.option_units import round_batches

        with stage(run, "round"):
            left = yield from round_batches(run, partial(on_outcome, "round"), part, at_most)
        if left:
            return  # stopped by `at_most`
    if read_plan(run, screened=False).config.sensitivity.screen:
        from hpcmpq.screening.stage import screened_batches as batches
    else:
        from hpcmpq.calibrate.stage import calibrate_batches as batches

    with stage(run, "calibrate"):
        yield from batches(run, partial(on_outcome, "calibrate"), part, at_most)


def check_together(runs: Sequence[RunDir]) -> None:
    """Refuse runs that one process may not measure one after the other.

    Raises:
        UserError: If a run is given twice, or functions of two runs' configs may be of different files of one name.
    """
    found: dict[Path, RunDir] = {}
    of_paths: dict[tuple[str, ...], RunDir] = {}
    models: set[str] = set()
    for run in runs:
        if run.path.resolve() in found:
            raise UserError(f"{run.path} is given twice; give each run directory once")
        found[run.path.resolve()] = run
        with suppress(UserError, DamagedFile):  # which is said of the run itself
            plan = read_plan(run, screened=False)
            config = plan.config
            named = (config.model.factory, config.calibration.data, config.evaluation.data)
            if any(name is not None and is_factory(name) for name in named):
                of_paths.setdefault(plan.import_paths, run)
            if config.model.path is not None:
                models.add(config.model.path)
    if len(models) > 1 and COPY in os.environ:
        raise UserError(
            f"{COPY} is a copy of one model, and the runs have {len(models)}; unset it, or name copies in "
            "HPCMPQ_MODEL_COPIES as slurm/env.sh does"
        )
    if len(of_paths) > 1:
        one, other, *_ = of_paths.values()
        raise UserError(
            f"{one.path} and {other.path} have functions that are imported from different directories, and a process "
            "imports a name once; calibrate them in commands of their own"
        )
