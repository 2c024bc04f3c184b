"""The calibrate stage: run the missing work units anywhere, one shard each."""

from collections.abc import Callable
from functools import partial

from hpcmpq.executors import Executor, Worker
from hpcmpq.executors.batches import Batches, run_batches
from hpcmpq.plan import UnitOutcome
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.units import missing_batches


def calibrate(
    run: RunDir,
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> None:
    """Measure every missing unit of the run's plan; see `calibrate_batches`."""
    run_batches(calibrate_batches(run, on_outcome, part, at_most), executor)


def calibrate_batches(
    run: RunDir,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> Batches[None]:
    """Every missing unit of the run's plan; see `hpcmpq.units.missing_batches`. Of a plan in rounds, of each."""
    plan = read_plan(run)
    left = at_most

    def outcome_seen(outcome: UnitOutcome, done: int, total: int) -> None:
        nonlocal left
        left = None if left is None else left - (outcome.error is None)
        on_outcome(outcome, done, total)

    for number, own in enumerate(plan.rounds or (plan,)):
        yield from missing_batches(
            run, own, partial(_make_worker, number), outcome_seen, part, left, work=own.work_of
        )


def _make_worker(number: int, run: RunDir) -> Worker:
    """See `hpcmpq.calibrate.worker.make_worker`; torch is loaded where units are measured, and nowhere else."""
    from hpcmpq.calibrate.worker import make_worker

    return make_worker(run, number)
