"""Actors on a Ray cluster, one unit each at a time, on whatever nodes it has. The only user of ray.

A lost actor or node costs the unit it was busy with one attempt, and another actor starts wherever there is
room, also on nodes that join later. Every wait has a time limit, because Ray waits for ever, without an
error, for resources that a lost node has taken with it.
"""

import logging
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.executors import MAX_ATTEMPTS, Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.held_signals import signals_held
from hpcmpq.executors.ray_demand import Demand, count_places, read_demand
from hpcmpq.executors.ray_worker import RayWorker
from hpcmpq.executors.reply import Reply, one_line, outcome_of
from hpcmpq.plan import UnitOutcome, WorkUnit

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between looks at what the cluster offers."""

OBJECT_STORE_BYTES = 128 << 20
"""Shared memory of a Ray that we start, for units and replies; Ray's default is 30 % of the machine's."""


@contextmanager
def open_pool(num_workers: int) -> Iterator["RayPool"]:
    """A pool on the cluster at RAY_ADDRESS, or on a Ray of this machine that is started and stopped here.

    Raises:
        UserError: If ray is missing or the cluster cannot be reached.
    """
    demand = read_demand(os.environ)
    try:
        import ray
    except ImportError as error:
        raise UserError("--executor ray needs the package ray; `pip install 'hpcmpq[ray]'`") from error
    pool = RayPool(num_workers, demand)
    if ray.is_initialized():
        with closing(pool):
            yield pool
        return
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        with signals_held():
            try:
                if address:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                else:
                    ray.init(
                        address="local",
                        num_cpus=len(os.sched_getaffinity(0)),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _temp_dir=stack.enter_context(_short_folder()),
                    )
            except (OSError, RuntimeError, ValueError) as error:
                where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "a Ray on this machine"
                raise UserError(f"cannot reach {where}: {one_line(error)}; check `ray status`") from error
        stack.callback(ray.shutdown)
        with closing(pool):
            yield pool


def _short_folder() -> tempfile.TemporaryDirectory[str]:
    """For the files of a Ray that we start: its sockets' names have at most 107 bytes, which a job's TMPDIR fills."""
    return tempfile.TemporaryDirectory(
        prefix=f"hpcmpq-{os.getpid()}-", dir="/tmp", ignore_cleanup_errors=True
    )


@dataclass
class RayPool:
    """At most `num_workers` actors; 0 takes as many as the cluster's nodes can hold at any moment."""

    num_workers: int
    demand: Demand
    _kept: "list[_Actor]" = field(default_factory=list)
    _recipe: bytes = b""

    def close(self) -> None:
        """End the actors that wait for another run."""
        while self._kept:
            _kill(self._kept.pop())

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Generator[UnitOutcome, None, None]:
        """See `hpcmpq.executors.Executor.run`."""
        recipe = pickle.dumps(make_worker)
        if recipe != self._recipe or not keep:
            self.close()
        self._recipe = recipe
        crew = _Crew(recipe, Backlog(units), self.num_workers, self.demand, self._kept)
        try:
            while crew.has_work():
                with signals_held():
                    crew.grow()
                    replies = crew.replies()
                for actor, reply in replies:
                    outcome = None
                    actor.node = reply.node or actor.node
                    if reply.start:
                        crew.check_start(reply)
                    else:
                        assert actor.unit is not None
                        outcome = outcome_of(reply, actor.unit, crew.backlog)
                    crew.go_on(actor, alive=not reply.useless)
                    if outcome is not None:
                        yield outcome
        finally:
            crew.end()
            if not keep:
                self.close()


@dataclass
class _Actor:
    """A Ray actor and what it is busy with; no unit means that it is making its worker, or rests."""

    handle: Any
    unit: WorkUnit | None = None
    node: str = ""


@dataclass
class _Crew:
    """The actors of one run. Each has exactly one reply pending, by whose reference it is found, or is idle."""

    recipe: bytes
    backlog: Backlog
    num_workers: int
    demand: Demand
    idle: list[_Actor] = field(default_factory=list)
    actors: dict[Any, _Actor] = field(default_factory=dict)
    num_failed_starts: int = 0
    num_broken: int = 0
    next_look_s: float = 0.0
    last_room_s: float = field(default_factory=time.monotonic)

    def has_work(self) -> bool:
        """Whether a unit waits or is being measured."""
        return bool(self.backlog) or any(actor.unit for actor in self.actors.values())

    def grow(self) -> None:
        """Start actors where nodes have room, at most every `POLL_S`: nodes come and go."""
        import ray

        while self.backlog and self.idle:
            self.go_on(self.idle.pop(), alive=True)
        now_s = time.monotonic()
        if now_s < self.next_look_s:
            return
        self.next_look_s = now_s + POLL_S
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = self.demand.resources(nodes)
        num_places = count_places(nodes, resources)
        if num_places:
            self.last_room_s = now_s
        elif now_s - self.last_room_s > self.demand.wait_s:
            raise UserError(
                f"no node of the Ray cluster can hold a worker that needs {resources} (nodes have "
                f"{[{name: node.get(name, 0) for name in resources} for node in nodes]}); "
                "ask for less in HPCMPQ_RAY_NUM_CPUS, _NUM_GPUS or _MEMORY_GB, or add nodes"
            )
        num_wanted = len(self.backlog) + sum(actor.unit is not None for actor in self.actors.values())
        num_most = max(1, (self.num_workers or num_places) - self.num_broken)
        for _ in range(min(num_most, num_wanted) - len(self.actors) - len(self.idle)):
            remote = ray.remote(
                num_cpus=resources.get("CPU", 0),
                num_gpus=resources.get("GPU", 0),
                memory=int(resources.get("memory", 0)) or None,
                max_restarts=0,
                scheduling_strategy="SPREAD",
            )
            handle = remote(RayWorker).remote()
            self.actors[handle.start.remote(self.recipe, os.getcwd(), sys.path)] = _Actor(handle)

    def replies(self) -> list[tuple[_Actor, Reply]]:
        """The replies that came within `POLL_S`; a dead actor's says so."""
        import ray
        from ray.exceptions import RayError

        if not self.actors:
            time.sleep(POLL_S)
            return []
        arrived = []
        for reference in ray.wait(list(self.actors), timeout=POLL_S)[0]:
            actor = self.actors.pop(reference)
            try:
                reply = ray.get(reference, timeout=POLL_S)
            except RayError as error:
                reply = Reply(error=_cause(error), start=actor.unit is None, died=True, node=actor.node)
            arrived.append((actor, reply))
        return arrived

    def check_start(self, reply: Reply) -> None:
        """Count failed starts in a row: a bad model must end the run, one bad node or one bad GPU must not."""
        if reply.broken and any(actor.unit for actor in self.actors.values()):
            self.num_broken += 1
            log.warning("a Ray worker has no GPU (%s): the others go on without it", reply.error)
            return
        self.num_failed_starts = 0 if reply.error is None else self.num_failed_starts + 1
        if reply.fatal or self.num_failed_starts >= MAX_ATTEMPTS:
            if reply.traceback:
                log.error("%s", reply.traceback.rstrip())
            raise UserError(reply.error if reply.fatal else f"no Ray worker can start: {reply.error}")

    def go_on(self, actor: _Actor, alive: bool) -> None:
        """Give an actor its next unit, or none for now."""
        if alive and self.backlog:
            # An actor without a node waits for room, perhaps for ever.
            others = {other.node for other in self.actors.values() if other.node}
            actor.unit = self.backlog.take_for(actor.node, others)
            handle = actor.handle
            task = handle.rest.remote() if actor.unit is None else handle.measure.remote(actor.unit)
            self.actors[task] = actor
        elif alive:
            actor.unit = None
            self.idle.append(actor)
        else:
            _kill(actor)

    def end(self) -> None:
        """Kill all but the idle ones at once: finished shards are on disk, and unfinished ones have temporary names."""
        for actor in self.actors.values():
            _kill(actor)


def _kill(actor: _Actor) -> None:
    import ray

    with suppress(Exception):  # it is dead already, or Ray is
        ray.kill(actor.handle)


def _cause(error: Exception) -> str:
    """What happened to an actor, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "because" in line or "exit detail" in line or "Error" in line]
    return f"its Ray worker was lost ({type(error).__name__}: {(telling or lines or [''])[-1][:200]})"
