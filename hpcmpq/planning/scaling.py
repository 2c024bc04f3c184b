"""How long calibration takes on N workers, predicted from measured unit times, and what bounds it.

The model: workers take units largest first from one coordinator, which spends `dispatch_s` on each; a unit's
time varies by a log-normal factor; its shard goes through one queue, the file system; before the
first unit every worker starts and every node reads the model, all at once. Effects are switched on one after
the other, and what each adds to the makespan is its loss.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.store.attempts import CalibrateProcess, unit_seconds

NUM_TRIALS = 5
"""Simulations with different stragglers that a prediction is the mean of."""


FANOUT = 2
"""Nodes that a node passes the model on to."""

_MEASURED, _READY = 0, 1


@dataclass(frozen=True)
class Workload:
    """What is to be done.

    Attributes:
        seconds_U: Wall time of each unit alone on a worker, [U].
        spread: Standard deviation of the logarithm of a unit's time between runs of it.
        startup_s: From the start of a worker to its first unit, without reading the model and what workers share.
        model_bytes: What a node reads to load the model.
        shard_bytes: Size of one unit's shard.
        shared_s: Of one worker alone, what all do together before their first units: choosing ranges.
    """

    seconds_U: np.ndarray
    spread: float = 0.0
    startup_s: float = 0.0
    model_bytes: float = 0.0
    shard_bytes: float = 0.0
    shared_s: float = 0.0


@dataclass(frozen=True)
class Site:
    """Where it is done. The defaults suit a cluster with a middling parallel file system.

    Attributes:
        workers_per_node: Workers that share a node, its network and its copy of the model; half of one takes two nodes.
        read_bytes_per_s: What the file system delivers to all nodes together.
        node_bytes_per_s: What one node can read.
        write_bytes_per_s: What the file system takes from all nodes together.
        create_s: Time of creating, syncing and renaming one file, one after the other over all nodes.
        dispatch_s: The coordinator's time for one unit.
        passes_on: Whether one node reads the model and others get it from those that have it, as by `sbcast`, rather
            than all from the file system.
    """

    workers_per_node: float = 4
    read_bytes_per_s: float = 50e9
    node_bytes_per_s: float = 5e9
    write_bytes_per_s: float = 20e9
    create_s: float = 1e-3
    dispatch_s: float = 1e-3
    passes_on: bool = False

    def num_nodes(self, num_workers: int) -> int:
        """Nodes that hold so many workers."""
        return math.ceil(num_workers / self.workers_per_node)


@dataclass(frozen=True)
class Prediction:
    """How long it takes and why.

    Attributes:
        num_workers: Workers.
        makespan_s: From the start of the job to the last shard.
        ideal_s: All units' time over the workers.
        losses: {effect: seconds it adds}; with `ideal_s` they add up to `makespan_s`.
        node_hours: What a batch system charges.
    """

    num_workers: int
    makespan_s: float
    ideal_s: float
    losses: Mapping[str, float]
    node_hours: float = 0.0

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that goes into units."""
        return self.ideal_s / self.makespan_s

    @property
    def bound_by(self) -> str:
        """The largest loss, or `work` where the units themselves take more than all losses together."""
        if self.efficiency > 0.5:
            return "work"
        return max(self.losses, key=lambda name: self.losses[name])


def predict(work: Workload, site: Site, num_workers: int, seed: int = 0) -> Prediction:
    """The makespan of a workload on `num_workers` workers.

    Raises:
        ValueError: If there is no worker or no unit.
    """
    if num_workers < 1 or not len(work.seconds_U):
        raise ValueError(f"need a worker and a unit, got {num_workers} and {len(work.seconds_U)}")
    units_U = np.sort(work.seconds_U)[::-1]
    generator = np.random.default_rng(seed)
    trials = [_with_stragglers(units_U, work.spread, generator) for _ in range(NUM_TRIALS)]
    write_s = work.shard_bytes / site.write_bytes_per_s + site.create_s

    def mean_makespan(dispatch_s: float, write_s: float) -> float:
        return float(np.mean([schedule(trial_U, num_workers, dispatch_s, write_s) for trial_U in trials]))

    ladder = {
        "too few units": schedule(units_U, num_workers),
        "stragglers": mean_makespan(0.0, 0.0),
        "coordinator": mean_makespan(site.dispatch_s, 0.0),
        "writing shards": mean_makespan(site.dispatch_s, write_s),
    }
    before = ideal = float(units_U.sum()) / num_workers
    losses = {}
    for name, seconds in ladder.items():
        losses[name] = seconds - before
        before = seconds
    losses["starting"] = work.startup_s
    losses["choosing ranges"] = work.shared_s / num_workers
    losses["reading the model"] = read_seconds(work.model_bytes, site, num_workers)
    makespan = ideal + sum(losses.values())
    return Prediction(num_workers, makespan, ideal, losses, site.num_nodes(num_workers) * makespan / 3600)


def schedule(
    seconds_U: Sequence[float] | np.ndarray, num_workers: int, dispatch_s: float = 0.0, write_s: float = 0.0
) -> float:
    """Makespan of units handed out in this order to whoever is free.

    Example:
        >>> schedule([3.0, 2.0, 2.0], 2)
        4.0
        >>> schedule([1.0] * 8, 8, dispatch_s=1.0)  # the eighth is handed out after eight seconds
        9.0
    """
    todo = iter(seconds_U)
    coordinator = file_system = 0.0
    events = [(0.0, _READY)] * min(num_workers, len(seconds_U))
    while events:
        time_s, event = heapq.heappop(events)
        if event == _MEASURED:
            file_system = max(file_system, time_s) + write_s
            heapq.heappush(events, (file_system, _READY))
        elif (seconds := next(todo, None)) is not None:
            coordinator = max(coordinator, time_s) + dispatch_s
            heapq.heappush(events, (coordinator + float(seconds), _MEASURED))
    return file_system


def read_seconds(model_bytes: float, site: Site, num_workers: int) -> float:
    """Time until every node has read the model, all at once or the first for all.

    What is passed on in pieces arrives everywhere as fast as one node takes it in, and each of a tree's levels sends
    on to `FANOUT` nodes over one network, if as many files are on their way as the tree has levels (`slurm/env.sh`).
    Nodes that share a worker read a share of the model each.
    """
    num_nodes = site.num_nodes(num_workers)
    model_bytes *= min(1, site.workers_per_node)
    if site.passes_on:
        return (
            model_bytes
            / min(site.node_bytes_per_s, site.read_bytes_per_s)
            * min(FANOUT, max(1, num_nodes - 1))
        )
    return model_bytes / min(site.node_bytes_per_s, site.read_bytes_per_s / num_nodes)


def measured_workload(
    plan: Plan,
    processes: Iterable[CalibrateProcess],
    units: Iterable[WorkUnit],
    first: str = "hpcmpq calibrate RUN --at-most 2",
) -> Workload:
    """The workload of some units of a plan, from the units of it that were measured.

    Another unit takes time in proportion to its samples and the blocks that its options run.

    Raises:
        UserError: If none was measured; `first` is the command that measures some.
    """
    processes = list(processes)
    measured = unit_seconds(processes)
    sizes = {unit.id: plan.work_of(unit) for unit in plan.units}
    rates = {name: seconds / sizes[name] for name, seconds in measured.items() if name in sizes}
    if not rates:
        raise UserError(
            f"no unit was measured yet; run `{first}` on the kind of node that will calibrate, then ask again"
        )
    rate = float(np.mean(list(rates.values())))
    logs = np.log(np.maximum(list(rates.values()), 1e-9))
    return Workload(
        seconds_U=np.array([rate * sizes[unit.id] for unit in units]),
        spread=float(np.std(logs, ddof=1)) if len(logs) > 1 else 0.0,
        startup_s=startup_seconds(processes),
    )


def startup_seconds(processes: Iterable[CalibrateProcess]) -> float:
    """Median time from the start of a calibrate process to its first unit; 0 where its clock was set back meanwhile."""
    waits = [
        max(0.0, min(attempt.finished - attempt.seconds for attempt in process.attempts) - process.started)
        for process in processes
        if process.attempts
    ]
    return float(np.median(waits)) if waits else 0.0


def best_samples_per_unit(
    sample_s: float, num_samples: int, samples_per_pass: int, num_workers: int, per_unit: Workload, site: Site
) -> int:
    """Samples of one unit that give the shortest makespan; of those within 2 % of it the most: fewer files.

    Units of one pass, two, four and so on are tried.

    Args:
        sample_s: Time of one sample.
        num_samples: Samples of the plan.
        samples_per_pass: Samples of the smallest unit.
        num_workers: Workers.
        per_unit: Its spread, start-up and sizes; its units do not count.
        site: Where.
    """
    makespans = {}
    for doublings in range(max(0, math.ceil(math.log2(num_samples / samples_per_pass))) + 1):
        samples = samples_per_pass * 2**doublings
        starts = range(0, num_samples, samples)
        seconds_U = np.array([sample_s * min(samples, num_samples - start) for start in starts])
        work = replace(per_unit, seconds_U=seconds_U)
        makespans[min(samples, num_samples)] = predict(work, site, num_workers).makespan_s
    limit = 1.02 * min(makespans.values())
    return max(samples for samples, makespan in makespans.items() if makespan <= limit)


def _with_stragglers(seconds_U: np.ndarray, spread: float, generator: np.random.Generator) -> np.ndarray:
    """Times that vary by a log-normal factor, together as long as before."""
    varied_U = seconds_U * np.exp(generator.normal(0.0, spread, len(seconds_U)))
    return varied_U * (seconds_U.sum() / varied_U.sum())
