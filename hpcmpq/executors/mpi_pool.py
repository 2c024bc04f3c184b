"""Ranks of an MPI job: rank 0 hands out units, the others keep models resident. The only user of mpi4py.

Every rank runs the same command (`mpiexec -n 5 hpcmpq calibrate RUN --executor mpi`, or `srun`) and enters
`open_pool`: rank 0 gets the pool, the others serve units until rank 0 leaves and then get None. Nothing may
leave a job hanging, so an error on a serving rank, or on rank 0 while units are in flight, aborts the whole
job: finished shards are on disk and the same command goes on.
"""

import gc
import logging
import os
import pickle
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from hpcmpq.errors import UserError, exit_status
from hpcmpq.executors import Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.desk import Desk, LoneDesk
from hpcmpq.executors.devices import local_rank, take_gpu
from hpcmpq.executors.local_pool import LocalPool
from hpcmpq.executors.mpi_start import started_mpi
from hpcmpq.executors.reply import Reply, attempt, outcome_of, start
from hpcmpq.executors.roll_call import signals_heard
from hpcmpq.executors.world import NAMES, is_lone_shell, node_name
from hpcmpq.plan import UnitOutcome, WorkUnit
from hpcmpq.stopping import ignore_signals

log = logging.getLogger(__name__)

_WORLD_SIZES = [size for launcher in ("mpiexec", "srun") for _, size, _ in NAMES[launcher]] + ["SLURM_NTASKS"]
"""What the launcher says it started; the last is sbatch."""

LEAVE_S = 0.2
"""Time in which another node may take a unit that this one leaves to it."""

ABORT_DELAY_S = 0.5
"""Time that launchers need to pass on the last message: what is still in the pipe at an abort is lost."""


@contextmanager
def open_pool(num_workers: int) -> Iterator["MpiPool | LocalPool | None"]:
    """Rank 0's pool of all other ranks, None on those; alone, rank 0 works in a process of its own.

    Raises:
        UserError: If mpi4py or an MPI library is missing, or the launcher belongs to another MPI.
    """
    take_gpu(local_rank())  # before MPI starts, because an MPI built with CUDA starts CUDA too
    if is_lone_shell(os.environ):
        raise UserError(
            "--executor mpi waits for other tasks, and a shell of `srun --pty` is one; use --executor local, or "
            "start the command with srun or mpiexec"
        )
    with signals_heard("the other ranks of MPI" if local_rank() == 0 else ""):
        MPI, futures = _load_mpi()
    world = MPI.COMM_WORLD
    _check_world(world.Get_size(), os.environ)
    if world.Get_size() == 1:
        yield LocalPool(1)
        return
    pool = None
    try:
        idle = world.Get_rank() > (num_workers or world.Get_size())
        comm = world.Split(MPI.UNDEFINED if idle else 0)
        if idle:
            yield None
            return
        if comm.Get_rank() > 0:
            ignore_signals()  # they go to all ranks; rank 0 decides
        nodes = comm.allgather(node_name())
        with futures.MPICommExecutor(comm, root=0) as executor:
            if executor is not None:
                pool = MpiPool(executor, comm.Get_size() - 1, frozenset(nodes[1:]))
                try:
                    yield pool
                except BaseException as error:
                    if pool.running:  # the executor would wait for them
                        _abort(world, error)
                    raise
    except BaseException as error:
        if pool is None:
            _abort(world, error)
        raise
    if pool is None:
        yield None


@dataclass(frozen=True)
class MpiPool:
    """The `num_workers` ranks behind an `MPICommExecutor`, and their nodes.

    What has failed the devices of ranks is in `broken`: such a rank measures no more, for no other process can take
    its place.
    """

    executor: Any
    num_workers: int
    nodes: frozenset[str]
    running: "dict[Future[Reply], tuple[Backlog, WorkUnit]]" = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`."""
        desk = LoneDesk(Backlog(units, pickle.dumps(make_worker)))
        with closing(self.hand_out(desk, keep)) as outcomes:
            for _, outcome in outcomes:
                yield outcome

    def hand_out(self, desk: Desk, keep: bool = False) -> Generator[tuple[Backlog, UnitOutcome], None, None]:
        """See `hpcmpq.executors.desk.DeskPool.hand_out`.

        Tasks go to idle ranks in the order in which these became idle, so the desk is told what the next one has; were
        it another rank, it would load another run's model, no more. What the only idle rank has left
        waits until another is idle too: it would get the same unit again, and two ranks could do so forever, each with
        what the other may measure. It then counts as one that has no run: in its own the same unit is the next.
        """
        idle: deque[Backlog | None] = deque([None] * self.num_workers)
        ended: SimpleQueue[Future[Reply]] = SimpleQueue()
        resting = False
        while True:
            while not resting and idle and (handed := desk.take(idle[0])) is not None:
                if len(self.broken) >= self.num_workers:
                    raise UserError(f"all ranks have lost their GPUs, the last one by {self.broken[-1]}")
                backlog, unit = handed
                idle.popleft()
                avoided = backlog.avoided(unit)
                if self.broken or avoided >= self.nodes:  # other nodes may have nobody left
                    avoided = frozenset()
                future = self.executor.submit(_measure, backlog.recipe, unit, avoided)
                self.running[future] = handed
                future.add_done_callback(ended.put)
            if not self.running:
                break
            future = ended.get()
            reply, (backlog, unit) = future.result(), self.running.pop(future)
            idle.append(None if reply.left else backlog)
            if reply.broken:
                self.broken.append(str(reply.error))
                log.warning("a rank has lost its GPU and measures no more: %s", reply.error)
            if reply.left or (reply.start and reply.broken):
                backlog.put_back(unit)
                resting = bool(self.running) and len(idle) == 1
                continue
            resting = False
            try:
                if reply.start and reply.error is not None:
                    sys.stderr.write(reply.traceback)
                    raise UserError(reply.error if reply.fatal else f"a rank cannot start: {reply.error}")
                outcome = outcome_of(reply, unit, backlog)
            except UserError as error:
                desk.refuse(backlog, error)
                continue
            yield backlog, outcome
        if keep:
            return
        # Idle ranks get tasks in turn, so this reaches each of them once.
        wait([self.executor.submit(_forget) for _ in range(self.num_workers)])


_made: tuple[bytes, Worker] | None = None
_broken = False


def _measure(recipe: bytes, unit: WorkUnit, avoided: frozenset[str] = frozenset()) -> Reply:
    """Measure a unit on this rank, with the worker that its previous unit left here.

    Not on a node that it avoids, and not where the device has failed: units are handed to whichever rank is idle.
    """
    global _made, _broken
    if _broken or node_name() in avoided:
        time.sleep(LEAVE_S)
        return Reply(left=True)
    if _made is None or _made[0] != recipe:
        _made = None  # frees the old model before the new one is loaded
        gc.collect()
        worker, reply = start(lambda: pickle.loads(recipe)())
        if worker is None:
            _broken = reply.broken
            return reply
        _made = recipe, worker
    reply = attempt(_made[1], unit)
    _broken = reply.broken
    return reply


def _forget() -> None:
    """Free this rank's model: later stages may want the memory of its GPU."""
    global _made
    _made = None


def _load_mpi() -> tuple[Any, Any]:
    try:
        MPI = started_mpi()
        from mpi4py import futures
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"--executor mpi needs mpi4py and an MPI library ({str(error).splitlines()[0]}); on a cluster "
            "load its MPI module and `pip install 'hpcmpq[mpi]'`, elsewhere `pip install 'hpcmpq[mpi-wheel]'`"
        ) from error
    return MPI, futures


def _check_world(size: int, environment: Mapping[str, str]) -> None:
    """Refuse to be one of N jobs of one rank that each think they are alone."""
    name = next((name for name in _WORLD_SIZES if environment.get(name, "").isdecimal()), None)
    if name is not None and size == 1 and int(environment[name]) > 1:
        raise UserError(
            f"{name} says {environment[name]} ranks but MPI sees 1; start the command with srun or mpiexec, "
            "and if it was, that launcher belongs to another MPI than mpi4py loaded: use its own "
            "mpiexec, or another `srun --mpi=` (`srun --mpi=list` shows them)"
        )


def _abort(comm: Any, error: BaseException) -> None:
    """End all ranks at once, with the message and status that the command line would end with."""
    ignore_signals()  # launchers pass on what came to all already
    status = exit_status(error)
    message = "".join(traceback.format_exception(error)) if status == 1 else f"hpcmpq: {error}\n"
    sys.stderr.write(message)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(ABORT_DELAY_S)
    comm.Abort(status)
    os._exit(status)  # should it return before the launcher ends this process, the message is not said again
