"""The calibrate stage: run the missing work units anywhere, one shard each."""

from collections.abc import Callable
from functools import partial

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
    """Measure every missing unit of the run's plan; see `hpcmpq.units.run_missing`. Of a plan in rounds, of each."""
    plan = read_plan(run)
    left = at_most

    def outcome_seen(outcome: UnitOutcome, done: int, total: int) -> None:
        nonlocal left
        left = None if left is None else left - (outcome.error is None)
        on_outcome(outcome, done, total)

    for number, own in enumerate(plan.rounds or (plan,)):
        run_missing(
            run, own, partial(_make_worker, number), executor, outcome_seen, part, left, work=own.work_of
        )


def _make_worker(number: int, run: RunDir) -> Worker:
    """See `hpcmpq.calibrate.worker.make_worker`; torch is loaded where units are measured, and nowhere else."""
    from hpcmpq.calibrate.worker import make_worker

    return make_worker(run, number)
