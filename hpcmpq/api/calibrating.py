"""`Run.calibrate` and `Run.refine`: in this process, or where an executor runs work units."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpcmpq.api import stages
from hpcmpq.api.bars import Counted, passing
from hpcmpq.api.quadratic import Quadratic
from hpcmpq.api.solution import Solution, solution_of
from hpcmpq.errors import UserError
from hpcmpq.executors import Executor, open_executor
from hpcmpq.executors.in_process import InProcess
from hpcmpq.store.run_dir import RunDir

if TYPE_CHECKING:
    from hpcmpq.api.run import Run
    from hpcmpq.plan import UnitOutcome


def calibrate(run: "Run", *, workers: int | None = None, executor: str | None = None) -> Quadratic:
    """Measure what is missing, and add it up to the quadratic model.

    Args:
        run: A planned run.
        workers: Processes; None measures in this one, 0 takes one per GPU or core. A script that uses them needs
            ``if __name__ == "__main__":`` around its calls.
        executor: ``local``, ``mpi`` or ``ray``; None is local where `workers` is given.

    Raises:
        IncompleteCalibration: If a work unit failed; what is finished is on disk.
        UserError: If no worker can start.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> example_run().calibrate()
        Quadratic(3 groups, 9 options, secant of kl on 8 samples)
    """
    with workers_of(workers, executor) as pool:
        for name, run_units in (("round", stages.round_options), ("calibrate", stages.calibrate)):
            with passing(name, "units") as show:

                def on_outcome(outcome: "UnitOutcome", done: int, total: int, show: Counted = show) -> None:
                    show(done, total)

                run_units(RunDir(run.path), pool, on_outcome)
    stages.reduce(RunDir(run.path))
    return run.quadratic


def refine(run: "Run", *, workers: int | None = None, executor: str | None = None) -> Solution:
    """The last solution improved by measured losses, with what to expect on samples that it never saw.

    Args:
        run: A solved run.
        workers: As in `calibrate`.
        executor: As in `calibrate`.

    Raises:
        UserError: If nothing is solved yet, no samples are held out, or no worker can start.
        IncompleteCalibration: If a work unit failed; what is finished is on disk.

    Example:
        >>> from hpcmpq.api.example import example_run
        >>> run = example_run()
        >>> solution = run.solve(weight_bits=4)
        >>> run.refine().measured_loss > 0
        True
    """
    with workers_of(workers, executor) as pool, passing("refine", "evaluations") as show:
        return solution_of(stages.refine(RunDir(run.path), pool, show))


@contextmanager
def workers_of(workers: int | None, executor: str | None) -> Iterator[Executor]:
    """Where units run: in this process, unless a number of workers or an executor is given."""
    alone = workers is None and executor is None
    with _one_worker() if alone else open_executor(executor or "local", workers or 0) as pool:
        if pool is None:
            raise UserError("this MPI rank only serves another; call this in rank 0")
        yield pool


@contextmanager
def _one_worker() -> Iterator[Executor]:
    """This process, which gets back the number of threads that a worker changes."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield InProcess()
    finally:
        torch.set_num_threads(threads)
