"""Processes on this machine, one unit each at a time.

A process and a pipe of our own per worker, not a `ProcessPoolExecutor`: there the death of one process fails
the units of all others too, so a unit that runs out of memory would use up the attempts of its innocent
neighbours.
"""

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from hpcmpq.errors import UserError
from hpcmpq.executors import MAX_ATTEMPTS, Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.collector import collect_rarely
from hpcmpq.executors.desk import Desk, LoneDesk
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
    """A worker process, its last unit and the backlog of that; `started` once it has made the worker of its recipe."""

    process: SpawnProcess
    place: int
    backlog: Backlog
    unit: WorkUnit
    recipe: bytes = b""
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
        with closing(self.hand_out(LoneDesk(Backlog(units, recipe)), keep)) as outcomes:
            for _, outcome in outcomes:
                yield outcome

    def hand_out(self, desk: Desk, keep: bool = False) -> Generator[tuple[Backlog, UnitOutcome], None, None]:
        """See `hpcmpq.executors.desk.DeskPool.hand_out`."""
        busy: dict[Connection, _Process] = {}
        idle = list(range(self.num_workers))[::-1]
        try:
            self._give(busy, idle, desk)
            while busy:
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    worker, reply = busy[connection], _receive(connection)
                    backlog, outcome = worker.backlog, None
                    try:
                        if reply is None:
                            outcome = _died(worker)
                        elif reply.start and reply.broken and len(busy) > 1:
                            _end({connection: busy.pop(connection)})
                            backlog.put_back(worker.unit)
                            log.warning(
                                "worker %d has no GPU (%s): the others go on without it",
                                worker.place,
                                reply.error,
                            )
                            continue
                        elif reply.start:
                            check_started(reply)
                            worker.started, backlog.num_deaths = True, 0
                            continue
                        else:
                            outcome = outcome_of(reply, worker.unit, backlog)
                    except UserError as error:
                        desk.refuse(backlog, error)
                    del busy[connection]
                    idle.append(worker.place)
                    if reply is None or reply.broken:
                        _end({connection: worker})
                    else:
                        self._kept[worker.place] = connection, worker
                    self._give(busy, idle, desk)
                    if not keep and worker.place in self._kept:
                        _end(dict([self._kept.pop(worker.place)]))
                    if outcome is not None:
                        yield backlog, outcome
                        self._give(busy, idle, desk)
        finally:
            _end(busy)

    def _give(self, busy: dict[Connection, _Process], idle: list[int], desk: Desk) -> None:
        """Give units to the places that have none, as long as units wait; the last ones first."""
        while idle:
            connection, worker = self._kept.get(idle[-1], (None, None))
            handed = desk.take(worker.backlog if worker else None)
            if handed is None:
                return
            self._kept.pop(place := idle.pop(), None)
            if connection is None or worker is None:
                connection, worker = _new_process(busy, place, *handed)
            else:
                worker.backlog, worker.unit = handed
                busy[connection] = worker
            recipe = worker.backlog.recipe if worker.recipe != worker.backlog.recipe else None
            if recipe is not None:
                worker.recipe, worker.started = recipe, False
            with suppress(OSError):  # it died, which the next `_receive` finds
                connection.send((recipe, worker.unit))


def _died(worker: _Process) -> UnitOutcome | None:
    """The outcome for the unit of a process that is gone; None if it died before it looked at that.

    Raises:
        UserError: If processes die again and again while the model is loaded.
    """
    backlog, death = worker.backlog, _death(worker.process)
    if worker.started:
        return backlog.failed(worker.unit, f"its worker process {death}", node=node_name())
    backlog.num_deaths += 1
    if backlog.num_deaths >= MAX_ATTEMPTS:
        raise UserError(
            f"{backlog.num_deaths} worker processes in a row died while loading the model, the last {death}; "
            "use fewer --workers or a machine with more memory"
        )
    backlog.put_back(worker.unit)
    return None


def _new_process(
    busy: dict[Connection, _Process], place: int, backlog: Backlog, unit: WorkUnit
) -> tuple[Connection, _Process]:
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # started inside `_signals_wait`, it would let them through
    with _signals_wait():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, place), daemon=True)
        process.start()
        theirs.close()
        busy[ours] = worker = _Process(process, place, backlog, unit)
    return ours, worker


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


def _serve(connection: Connection, place: int) -> None:
    """The life of a worker process: it gets units, and the recipe of their worker where that is another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # they go to the whole process group; the parent decides
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    take_gpu(place)
    collect_rarely()
    reply = Reply()
    worker: Worker | None = None
    with suppress(EOFError, OSError):  # the parent ended
        while not reply.broken:
            recipe, unit = connection.recv()
            if recipe is not None:
                worker = None  # frees the old model before the new one is loaded
                gc.collect()
                worker, reply = start(partial(_made_by, recipe))
                connection.send(reply)
            if worker is not None:
                reply = attempt(worker, unit)
                connection.send(reply)


def _made_by(recipe: bytes) -> Worker:
    made: Worker = pickle.loads(recipe)()
    return made


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
