"""Processes on this machine, one unit each at a time.

A process and a pipe of our own per worker, not a `ProcessPoolExecutor`: there the death of one process fails
the units of all others too, so a unit that runs out of memory would use up the attempts of its innocent
neighbours.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from hpcmpq.errors import UserError
from hpcmpq.executors import MAX_ATTEMPTS, Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.collector import collect_rarely
from hpcmpq.executors.devices import take_gpu, visible_gpus
from hpcmpq.executors.reply import Reply, attempt, check_started, outcome_of, start
from hpcmpq.executors.world import node_name
from hpcmpq.plan import UnitOutcome, WorkUnit
from hpcmpq.stopping import SIGNALS

log = logging.getLogger(__name__)


@contextmanager
def open_pool(num_workers: int) -> Iterator["LocalPool"]:
    """`num_workers` processes; 0 takes one per GPU, or per core where there is no GPU."""
    pool = LocalPool(num_workers or len(visible_gpus()) or len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.let_go()


@dataclass
class _Process:
    """A worker process and the unit it is busy with; `started` once it has made its worker."""

    process: SpawnProcess
    place: int
    unit: WorkUnit
    started: bool = False


@dataclass
class LocalPool:
    """At most `num_workers` processes, each with a worker and, if there are any, a GPU of its own.

    A process whose GPU failed ends, and another takes its place; where that one cannot start, the others go on without.
    """

    num_workers: int
    _kept: dict[int, tuple[Connection, _Process]] = field(default_factory=dict)
    _recipe: bytes = b""

    def let_go(self) -> None:
        """End the processes that wait for another run."""
        _end(dict(self._kept.values()))
        self._kept.clear()

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`."""
        recipe = pickle.dumps(make_worker)
        if recipe != self._recipe or not keep:
            self.let_go()
        self._recipe = recipe
        backlog = Backlog(units)
        busy: dict[Connection, _Process] = {}
        num_deaths_at_start = 0
        try:
            for place in range(min(self.num_workers, len(backlog))):
                if place in self._kept:
                    waiting, worker = self._kept.pop(place)
                    worker.unit = backlog.take()
                    busy[waiting] = worker
                    _send(waiting, worker.unit)
                else:
                    _add_process(busy, recipe, place, backlog.take())
            while busy:
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    worker, reply = busy[connection], _receive(connection)
                    outcome = None
                    if reply is None:
                        del busy[connection]
                        death = _death(worker.process)
                        if worker.started:
                            outcome = backlog.failed(
                                worker.unit, f"its worker process {death}", node=node_name()
                            )
                        else:
                            num_deaths_at_start += 1
                            _check_starts(num_deaths_at_start, death)
                            backlog.put_back(worker.unit)
                        if backlog:
                            _add_process(busy, recipe, worker.place, backlog.take())
                    elif reply.start and reply.broken and len(busy) > 1:
                        _end({connection: busy.pop(connection)})
                        backlog.put_back(worker.unit)
                        log.warning(
                            "worker %d has no GPU (%s): the others go on without it",
                            worker.place,
                            reply.error,
                        )
                    elif reply.start:
                        check_started(reply)
                        worker.started, num_deaths_at_start = True, 0
                    else:
                        outcome = outcome_of(reply, worker.unit, backlog)
                        if reply.broken:
                            _end({connection: busy.pop(connection)})
                            if backlog:
                                _add_process(busy, recipe, worker.place, backlog.take())
                        elif backlog:
                            worker.unit = backlog.take()
                            _send(connection, worker.unit)
                        elif keep:
                            self._kept[worker.place] = connection, busy.pop(connection)
                        else:
                            _end({connection: busy.pop(connection)})
                    if outcome is not None:
                        yield outcome
        finally:
            _end(busy)


def _check_starts(num_deaths: int, death: str) -> None:
    if num_deaths >= MAX_ATTEMPTS:
        raise UserError(
            f"{num_deaths} worker processes in a row died while loading the model, the last {death}; "
            "use fewer --workers or a machine with more memory"
        )


def _add_process(busy: dict[Connection, _Process], recipe: bytes, place: int, unit: WorkUnit) -> None:
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # started inside `_signals_wait`, it would let them through
    with _signals_wait():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, recipe, place), daemon=True)
        process.start()
        theirs.close()
        busy[ours] = _Process(process, place, unit)
    _send(ours, unit)


def _send(connection: Connection, unit: WorkUnit) -> None:
    with suppress(OSError):  # it died, which the next `_receive` finds
        connection.send(unit)


def _receive(connection: Connection) -> Reply | None:
    """The next reply, or None if the process died."""
    try:
        return connection.recv()
    except (EOFError, OSError, pickle.UnpicklingError):
        return None


def _death(process: SpawnProcess) -> str:
    process.join(timeout=5)
    code = process.exitcode
    if code is not None and code < 0:
        hint = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
    return f"ended with status {code}"


def _end(busy: dict[Connection, _Process]) -> None:
    """Kill at once: finished shards are on disk, and unfinished ones have temporary names."""
    with _signals_wait():
        for worker in busy.values():
            worker.process.kill()
        for connection, worker in busy.items():
            worker.process.join()
            connection.close()


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals reach this process after the block; processes started inside hold them back too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, recipe: bytes, place: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # they go to the whole process group; the parent decides
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    take_gpu(place)
    collect_rarely()
    worker, reply = start(lambda: pickle.loads(recipe)())
    with suppress(EOFError, OSError):  # the parent ended
        connection.send(reply)
        while worker is not None and not reply.broken:
            reply = attempt(worker, connection.recv())
            connection.send(reply)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
