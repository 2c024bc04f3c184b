"""Each stage as the command line and `hpcmpq.Run` call it.

What killed processes left is removed before, defaults that the plan knows are filled in, and the wall time is kept in
RUN/timings.json. Nothing is printed, and nothing heavy is imported before a stage runs.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmpq.executors.world import ALONE, World
from hpcmpq.store.original import check_original
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir, remove_leftovers
from hpcmpq.store.shards import pending
from hpcmpq.store.timings import keep_timing
from hpcmpq.targets import find_target

if TYPE_CHECKING:
    from hpcmpq.calibrate.reduce import Reduction
    from hpcmpq.executors import Executor
    from hpcmpq.plan import Plan, UnitOutcome
    from hpcmpq.settings import Config

Counted = Callable[[int, int], None]
"""Called with how much is done and how much there is in all."""


def unseen(done: int, total: int) -> None:
    """The progress that nobody looks at."""


READING_THE_MODEL = ("round", "calibrate", "refine", "reround", "time", "export", "evaluate")


@contextmanager
def stage(run: RunDir, name: str) -> Iterator[None]:
    """Remove what killed stages left before, and keep the wall time of this one after.

    Raises:
        DamagedFile: If it reads RUN/original, and a file of that is not what was written.
    """
    remove_leftovers(run)
    start = time.monotonic()
    if name in READING_THE_MODEL:
        check_original(run)
    yield
    keep_timing(run, name, time.monotonic() - start, time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def plan(config: "Config", run: RunDir, import_paths: tuple[str, ...]) -> "Plan":
    """See `hpcmpq.planning.stage.prepare`; tasks are looked at first."""
    from hpcmpq.evaluate.tasks import check_tasks
    from hpcmpq.planning.stage import prepare

    with stage(run, "plan"):
        check_tasks(config)
        return prepare(config, run, import_paths)


def round_options(
    run: RunDir,
    pool: "Executor",
    on_outcome: "Callable[[UnitOutcome, int, int], None]",
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> bool:
    """See `hpcmpq.rounding.option_units.round_options`: the first part of calibrating, where weights have stored codes.

    Returns whether all codes are there.
    """
    if not has_codes(run):
        return True
    from hpcmpq.rounding.option_units import round_options as round_run

    with stage(run, "round"):
        return round_run(run, pool, on_outcome, part, at_most) == 0


def has_codes(run: RunDir) -> bool:
    """Whether codes are made before anything is measured."""
    return read_plan(run, screened=False).config.quantizer.stores_codes


def calibrate(
    run: RunDir,
    pool: "Executor",
    on_outcome: "Callable[[UnitOutcome, int, int], None]",
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> tuple[int, int]:
    """See `hpcmpq.calibrate.stage.calibrate`; returns how many units are done, and how many there are.

    With `sensitivity.screen` see `hpcmpq.screening.stage.calibrate_screened`.
    """
    if read_plan(run, screened=False).config.sensitivity.screen:
        from hpcmpq.screening.stage import calibrate_screened as calibrate_run
    else:
        from hpcmpq.calibrate.stage import calibrate as calibrate_run

    with stage(run, "calibrate"):
        calibrate_run(run, pool, on_outcome, part, at_most)
    return units_done(run)


def units_done(run: RunDir) -> tuple[int, int]:
    """How many units are measured, and how many there are."""
    made = read_plan(run)
    missing, _ = pending(made, run)
    return len(made.units) - len(missing), len(made.units)


def units_before(run: RunDir) -> tuple[int, int]:
    """How many units are left of what comes before measuring: making codes, and the first pass of screening."""
    plan = read_plan(run)
    num_codes = num_passes = 0
    if plan.config.quantizer.stores_codes:
        from hpcmpq.rounding.option_units import units_left as codes_left

        num_codes = codes_left(run)
    if plan.config.sensitivity.screen and not plan.rounds:
        from hpcmpq.screening.first_pass import units_left as passes_left

        num_passes = max(1, passes_left(run))
    return num_codes, num_passes


def reduce(run: RunDir) -> "Reduction":
    """See `hpcmpq.calibrate.reduce.reduce`."""
    from hpcmpq.calibrate.reduce import reduce as reduce_run

    with stage(run, "reduce"):
        return reduce_run(run)


def solve(
    run: RunDir,
    budgets: Mapping[str, float],
    solver: str | None = None,
    time_limit_s: float | None = None,
) -> dict[str, Any]:
    """See `hpcmpq.solve.stage.solve`; without budgets those of the plan, and its settings where none are given."""
    from hpcmpq.solve.settings import settings_of
    from hpcmpq.solve.stage import solve as solve_run

    with stage(run, "solve"):
        planned = read_plan(run)
        settings = settings_of(planned, name=solver, time_limit_s=time_limit_s)
        return solve_run(run, budgets or planned.config.budgets, settings)


def maximize(
    run: RunDir,
    gain: str,
    loss_limits: tuple[float | None, float | None],
    budgets: Mapping[str, float],
    solver: str | None = None,
    time_limit_s: float | None = None,
) -> dict[str, Any]:
    """See `hpcmpq.solve.largest_gain.maximize`.

    Args:
        run: A reduced run directory.
        gain: A name in `hpcmpq.solve.largest_gain.GAINS`.
        loss_limits: One of the two: the share of the loss's mean square, or the predicted loss increase.
        budgets: {cost name: upper limit}; empty for the config's.
        solver: As in `solve`.
        time_limit_s: As in `solve`.
    """
    from hpcmpq.solve.largest_gain import loss_limit
    from hpcmpq.solve.largest_gain import maximize as maximize_run
    from hpcmpq.solve.settings import settings_of
    from hpcmpq.store.quadratic_file import read_quadratic

    with stage(run, "solve"):
        planned = read_plan(run)
        settings = settings_of(planned, name=solver, time_limit_s=time_limit_s)
        limit = loss_limit(read_quadratic(run.quadratic_path, planned), *loss_limits)
        return maximize_run(run, gain, limit, budgets or planned.config.budgets, settings)


def refine(
    run: RunDir, pool: "Executor", on_evaluation: Counted = unseen, part: tuple[int, int] = (0, 1)
) -> dict[str, Any]:
    """See `hpcmpq.refine.stage.refine`."""
    from hpcmpq.refine.stage import refine as refine_run

    with stage(run, "refine"):
        return refine_run(run, pool, on_evaluation, part)


def reround(
    run: RunDir,
    method: str | None = None,
    strength: float | None = None,
    on_weight: Counted = unseen,
    pool: "Executor | None" = None,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """See `hpcmpq.rounding.stage.reround`."""
    from hpcmpq.rounding.stage import reround as reround_run

    with stage(run, "reround"):
        return reround_run(run, method, strength, on_weight, pool, part)


def measure_time(run: RunDir, on_round: Counted = unseen) -> dict[str, Any]:
    """See `hpcmpq.timing.measure_times`."""
    from hpcmpq.timing import measure_times

    with stage(run, "time"):
        return measure_times(run, on_round)


def export(run: RunDir, name: str | None = None, verify: bool = True) -> dict[str, tuple[Path, str]]:
    """See `hpcmpq.export.export`; {format: (its directory, a line about it)}.

    Without a name the run's own layout, and what the engine loads that the config names as target.
    """
    from hpcmpq.export import export as export_run

    names = ["fake_quantized" if name is None else name]
    if name is None and (target := read_plan(run).config.target):
        names.append(find_target(target).export)
    with stage(run, "export"):
        lines = {each: export_run(run, each, verify) for each in names}
    return {each: (_place(run, each), line) for each, line in lines.items()}


def _place(run: RunDir, name: str) -> Path:
    return run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name


def evaluate(
    run: RunDir,
    engine: str | None = None,
    world: World = ALONE,
    on_progress: Counted = unseen,
    pool: "Executor | None" = None,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """See `hpcmpq.evaluate.evaluate`; rank 0 keeps the time."""
    from hpcmpq.evaluate import evaluate as evaluate_run

    if world.rank > 0:
        return evaluate_run(run, engine, world)
    with stage(run, "evaluate"):
        return evaluate_run(run, engine, world, on_progress, pool, part)


def report(run: RunDir) -> Path:
    """See `hpcmpq.report.write_report`."""
    from hpcmpq.report import write_report

    with stage(run, "report"):
        return write_report(run)
