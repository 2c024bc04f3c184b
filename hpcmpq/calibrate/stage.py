"""The calibrate stage: run the missing work units anywhere, one shard each."""

from collections.abc import Callable

from hpcmpq.executors import Executor, Worker
from hpcmpq.plan import UnitOutcome
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.units import run_missing


def calibrate(
    run: RunDir,
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> None:
    """Measure every missing unit of the run's plan; see `hpcmpq.units.run_missing`."""
    run_missing(run, read_plan(run), _make_worker, executor, on_outcome, part, at_most)


def _make_worker(run: RunDir) -> Worker:
    """See `hpcmpq.calibrate.worker.make_worker`; torch is loaded where units are measured, and nowhere else."""
    from hpcmpq.calibrate.worker import make_worker

    return make_worker(run)
