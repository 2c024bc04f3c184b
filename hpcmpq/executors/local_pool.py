"""Processes on this machine, one unit each at a time; survives workers that die."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from hpcmpq.errors import UserError
from hpcmpq.executors import MAX_ATTEMPTS, UnitOutcome, Worker
from hpcmpq.plan import WorkUnit

_worker: Worker | None = None
_start_error: Exception | None = None


@dataclass(frozen=True)
class LocalPool:
    """`num_workers` fresh processes, each with a worker of its own."""

    num_workers: int

    def run(self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit]) -> Iterator[UnitOutcome]:
        """See `hpcmpq.executors.Executor.run`."""
        waiting = list(units)
        attempts = dict.fromkeys((unit.id for unit in units), 0)
        num_workers = min(self.num_workers, len(waiting))
        while waiting:
            pool = ProcessPoolExecutor(
                num_workers, multiprocessing.get_context("spawn"), _start_worker, (make_worker,)
            )
            running: dict[Future[float], WorkUnit] = {}
            try:
                broken = False
                while running or (waiting and not broken):
                    while waiting and len(running) < num_workers and not broken:
                        unit = waiting.pop(0)
                        running[pool.submit(_measure, unit)] = unit
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        unit = running.pop(future)
                        error = future.exception()
                        attempts[unit.id] += 1
                        broken = broken or isinstance(error, BrokenProcessPool)
                        if isinstance(error, UserError):
                            raise error
                        final = error is None or attempts[unit.id] >= MAX_ATTEMPTS
                        if not final:
                            waiting.append(unit)
                        seconds = 0.0 if error else future.result()
                        yield UnitOutcome(unit, seconds, _sentence(error), final)
            finally:
                _end(pool)


def _sentence(error: BaseException | None) -> str | None:
    if error is None:
        return None
    if isinstance(error, BrokenProcessPool):
        return "its worker process died (killed, or out of memory)"
    return f"{type(error).__name__}: {error}"


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes at once: finished shards are on disk and unfinished ones have temporary names."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(make_worker: Callable[[], Worker]) -> None:
    global _worker, _start_error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _worker = make_worker()
    except Exception as error:  # an initializer that raises would lose its message
        _start_error = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(unit: WorkUnit) -> float:
    if _worker is None:
        raise _start_error or RuntimeError("the worker process was not started")
    start = time.monotonic()
    _worker(unit)
    return time.monotonic() - start
