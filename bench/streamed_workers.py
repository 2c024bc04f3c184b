"""Calibration of models that no GPU holds, on workers of one GPU each that stream them: simulated, remedy by remedy.

Units are cut, ordered and shared out by the package's own functions; how long they take is assumed (see `ASSUMED`).
`python -m bench.scaling` prints the tables.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from bench.results import table
from hpcmpq.config import parse_config
from hpcmpq.plan import Plan, WorkUnit
from hpcmpq.planning.dry import PASSED_BYTES, Device
from hpcmpq.planning.recommended import EFFICIENT
from hpcmpq.planning.scaling import Site, read_seconds
from hpcmpq.planning.search import units_of
from hpcmpq.quantizers.ranges import NUM_FACTORS
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.units import starting_from

ASSUMED = """Larger models as the package runs them: a worker is a process with one GPU, and a model that this does
not hold is streamed, in float32 from files in bfloat16. Assumed, not measured: equal blocks of seven groups, seven
formats; `secant` with bfloat16 products at 300 TFLOP/s; 512 samples of 2,048 tokens, one a pass; 2 TB/s through the
GPU's memory, by which weights are rounded in every pass, and ranges are chosen of 32 candidates (56 bytes a weight
and candidate); 40 GB of the GPU for states of options, so several waves a
pass, each of which reads the blocks behind its first one; 20 GB/s from host to GPU, never hidden; four workers a
node; 60 s to start Python; 50 GB/s from the file system, 5 GB/s a node. A node's copy of the files is read at 1.25
GB/s a worker (`disk`) or, where the node's memory keeps them, at 5 GB/s (`memory`; one core of the machine that wrote
this reads and converts 0.5 to 0.7 GB/s, so that takes several). Every option of a mixture of experts runs twice. A
unit varies by 10 %. Efficiency is the share of all workers' time that goes into arithmetic and rounding."""

STEPS = """Each column adds to the one before. `before`: a unit is a sample, every node copies the files from the file
system, and a worker reads all blocks four times before its first unit, to check the model and its chain, and chooses
the ranges of each group that it meets. `passed on`:
`HPCMPQ_STAGE_BY=sbcast`, eight files at a time, each node to two others (as it was, one file at a time and each node
to eight, it would take 16 to 24 times as long as a node reads the files, since the next piece leaves when all nodes
have the last). `read ahead`: a thread reads the next block while one computes, and blocks are read three times before
the first unit. `cut`: `calibration: {workers: N}` splits groups as well, and ranks of MPI get the longest units
first. `shared`: a worker chooses, before its first unit, the ranges of groups for which no other has stored any, each
worker in an order of its own, and every node reads those of all groups once, in two bytes a scale. `array` is that in a
job array of four workers a task, which know of other tasks by their files alone. Losses are those of `shared`, in
seconds of a worker, from one percent of the time on."""

FITS = """What such a worker holds on its GPU, GB: a block and what lies outside of all; ranges of all options; the
largest group in one format beside the original and a copy (`options_per_pass: 1`); states of options. 405 B needs
fewer than seven formats on GPUs of 141 GB, or other GPUs, and 671 B other GPUs, or groups of fewer experts: of these
the tables say what would be if they held it."""

SAMPLES, TOKENS, GROUPS_PER_BLOCK, NUM_FORMATS, GROUP_SIZE = 512, 2048, 7, 7, 64
FLOP_PER_S, STARTUP_S, SPREAD, WORKERS_PER_NODE = 300e12, 60.0, 0.1, 4
STATES_BYTES, TO_DEVICE = 40e9, 20e9
COPY_BYTES_PER_S = {"disk": 1.25e9, "memory": 5e9}
READINGS_BEFORE, READINGS = 4, 3
NUM_WORKERS = (64, 256, 1024)


@dataclass(frozen=True)
class Streamed:
    """A decoder of equal blocks that is streamed.

    Attributes:
        name: What it is called here.
        num_parameters: In its blocks.
        num_blocks: Alike.
        width: Of the hidden state.
        num_active: Parameters that run for a token.
        outside: Parameters of embedding and head.
        largest_group: Parameters that share a format.
        repeats: How often an option runs.
    """

    name: str
    num_parameters: float
    num_blocks: int
    width: int
    num_active: float
    outside: float
    largest_group: float
    repeats: int = 1

    @property
    def file_bytes(self) -> float:
        """In bfloat16."""
        return 2 * self.num_parameters

    @property
    def ranges_s(self) -> float:
        """Of choosing the ranges of all options."""
        numel = self.num_parameters * NUM_FORMATS
        return NUM_FACTORS * PASSED_BYTES * numel / Device().memory_bytes_per_s

    @property
    def scale_bytes(self) -> float:
        """Of the stored ranges of all options."""
        return 2 * self.num_parameters * NUM_FORMATS / GROUP_SIZE


MODELS = (
    Streamed("70 B", 70e9, 80, 8192, 70e9, 2 * 128256 * 8192, 8192 * 28672),
    Streamed("405 B", 405e9, 126, 16384, 405e9, 2 * 128256 * 16384, 16384 * 53248),
    Streamed("671 B, 37 B active", 671e9, 61, 7168, 37e9, 2 * 129280 * 7168, 256 * 2 * 2048 * 7168, 2),
)
"""Vocabularies and largest groups are those of Llama 3 and DeepSeek V3."""


@dataclass(frozen=True)
class Way:
    """How a calibration is run: see `STEPS`."""

    passed_on: bool = False
    ahead: bool = False
    cut: bool = False
    shared: bool = False
    array: bool = False


WAYS = {
    "before": Way(),
    "passed on": Way(True),
    "read ahead": Way(True, True),
    "cut": Way(True, True, True),
    "shared": Way(True, True, True, True),
    "array": Way(True, True, True, True, True),
}


@dataclass(frozen=True)
class Simulated:
    """Seconds of a worker: until all is done, and what the mean worker spent them on."""

    makespan_s: float
    work_s: float
    losses: dict[str, float]

    @property
    def efficiency(self) -> float:
        """Share of the time that is arithmetic and rounding."""
        return self.work_s / self.makespan_s


@cache
def plan_of(model: Streamed, workers: int | None) -> Plan:
    """The plan's units as the package cuts them, of one sample where it is not told for how many workers."""
    calibration = {"data": "text.txt", "num_samples": SAMPLES, "samples_per_pass": 1, "workers": workers}
    if workers is None:
        calibration["samples_per_unit"] = 1
    config = parse_config({"model": {"path": "model", "stream": True}, "calibration": calibration})
    member = Member("weight", 1, 1, macs=1)
    groups = tuple(
        Group(f"{k}.{g}", (replace(member, parameter=f"{k}.{g}"),), k)
        for k in range(model.num_blocks)
        for g in range(GROUPS_PER_BLOCK)
    )
    space = SearchSpace(groups, (config.formats,) * len(groups))
    units = units_of(config, "simulated", len(groups), SAMPLES)
    return Plan(config, space, units, {}, "simulated", (), 0, {})


@cache
def unit_seconds(model: Streamed, first: int, stop: int, rate: float, ahead: bool) -> tuple[float, float]:
    """Seconds of a sample with the options of groups `first` to `stop`: all of them, and of arithmetic and rounding."""
    blocks, own = model.num_blocks, np.zeros(model.num_blocks)
    for group in range(first, stop):
        own[group // GROUPS_PER_BLOCK] += NUM_FORMATS
    forward_s = 2 * model.num_active / blocks * TOKENS / FLOP_PER_S
    state_bytes = 4 * TOKENS * model.width
    read_s, move_s = model.file_bytes / blocks / rate, 2 * model.file_bytes / blocks / TO_DEVICE
    round_s = model.num_parameters / blocks * PASSED_BYTES / Device().memory_bytes_per_s / GROUPS_PER_BLOCK
    total = work = 0.0
    for number, wave in enumerate(waves(own, STATES_BYTES / state_bytes)):
        start = 0 if number == 0 else int(np.flatnonzero(wave)[0])
        computed, spawned = 0.0, 0.0
        for k in range(start, blocks):
            spawned += wave[k]
            step = forward_s * (1 + spawned) + round_s * wave[k]
            total += max(0.0, read_s - computed) if ahead and k > start else read_s
            total += move_s + step
            work += step
            computed = step
    return model.repeats * total, model.repeats * work


def waves(own: np.ndarray, most: float) -> list[np.ndarray]:
    """Options of every block, wave by wave of at most so many; whole blocks, at least one."""
    found = [np.zeros(len(own))]
    for k, count in enumerate(own):
        if found[-1].any() and found[-1].sum() + count > most:
            found.append(np.zeros(len(own)))
        found[-1][k] = count
    return found


def simulate(model: Streamed, num_workers: int, copy: str, way: Way) -> Simulated:
    """All units on so many workers, the start and the copies before them."""
    plan = plan_of(model, num_workers if way.cut else None)
    rate = COPY_BYTES_PER_S[copy]
    generator = np.random.default_rng(0)
    place = {unit.id: number for number, unit in enumerate(plan.units)}
    varied = np.exp(generator.normal(0.0, SPREAD, len(plan.units)))
    seconds, work = np.zeros(len(plan.units)), 0.0
    for unit in plan.units:
        samples = unit.sample_stop - unit.sample_start
        all_s, own_s = unit_seconds(model, unit.group_start, unit.group_stop, rate, way.ahead)
        seconds[place[unit.id]] = samples * all_s * varied[place[unit.id]]
        work += samples * own_s
    parts = num_workers // WORKERS_PER_NODE if way.array else 1
    key = (plan.work_of,) if way.cut else ()
    orders = [starting_from(plan.units, plan.units, part, parts, *key) for part in range(parts)]
    each_s = model.ranges_s / len(plan.space.groups)
    ranges_s = 0.0 if way.shared else each_s
    end, chosen, twice = run(orders, num_workers // parts, lambda unit: seconds[place[unit.id]], ranges_s)
    readings = READINGS if way.ahead else READINGS_BEFORE
    before = {
        "starting": STARTUP_S,
        "copying the files": copying(model, num_workers, way.passed_on),
        "checking the model": readings * model.file_bytes * (1 / rate + 2 / TO_DEVICE),
    }
    if way.shared:
        before["choosing ranges together"] = each_s * choices_of_a_worker(len(plan.space.groups), num_workers)
        before["reading ranges"] = read_seconds(model.scale_bytes, Site(WORKERS_PER_NODE), num_workers)
    mean_work, mean_all = work / num_workers, float(seconds.sum()) / num_workers
    losses = before | {
        "choosing ranges": chosen / num_workers,
        "waiting for blocks": mean_all - mean_work,
        "measured twice": twice / num_workers,
    }
    makespan = end + sum(before.values())
    losses["idle at the end"] = makespan - mean_work - sum(losses.values())
    return Simulated(makespan, mean_work, losses)


def choices_of_a_worker(num_weights: int, num_workers: int) -> int:
    """Weights that workers choose for before all have ranges: at a time each for one that had none, at random."""
    generator = np.random.default_rng(0)
    missing = np.arange(num_weights)
    count = 0
    while len(missing):
        missing = np.setdiff1d(missing, generator.choice(missing, num_workers))
        count += 1
    return count


def copying(model: Streamed, num_workers: int, passed_on: bool) -> float:
    """Seconds until every node has the files."""
    return read_seconds(model.file_bytes, Site(WORKERS_PER_NODE, passes_on=passed_on), num_workers)


def run(
    orders: Sequence[Sequence[WorkUnit]],
    workers_per_order: int,
    seconds: Callable[[WorkUnit], float],
    ranges_s: float,
) -> tuple[float, float, float]:
    """When the last unit is done, and seconds of all workers that went into ranges, and into units measured twice.

    Args:
        orders: Of the units, one for each process that hands them out and knows nothing of the others but their shards.
        workers_per_order: Workers of each, that take its next unit.
        seconds: Of a unit.
        ranges_s: Of the ranges of one group, which a worker chooses when it meets the group first.
    """
    free = [(0.0, o * workers_per_order + w, o) for o in range(len(orders)) for w in range(workers_per_order)]
    heapq.heapify(free)
    met: list[set[int]] = [set() for _ in free]
    next_of, done = [0] * len(orders), dict[str, float]()
    end = chosen = twice = 0.0
    while free:
        now, worker, o = heapq.heappop(free)
        order = orders[o]
        while next_of[o] < len(order) and done.get(order[next_of[o]].id, np.inf) <= now:
            next_of[o] += 1  # its shard is there
        if next_of[o] == len(order):
            continue
        unit = order[next_of[o]]
        next_of[o] += 1
        new = set(range(unit.group_start, unit.group_stop)) - met[worker]
        met[worker] |= new
        finished = now + ranges_s * len(new) + seconds(unit)
        chosen += ranges_s * len(new)
        if unit.id in done:
            twice += seconds(unit)
        done[unit.id] = min(finished, done.get(unit.id, np.inf))
        heapq.heappush(free, (finished, worker, o))
    end = max(done.values())
    return end, chosen, twice


def steps() -> list[list[str]]:
    """Efficiency of every way on every number of workers, and what is lost in the last one without an array."""
    rows = []
    for model in MODELS:
        for num_workers in NUM_WORKERS:
            for copy in COPY_BYTES_PER_S:
                found = {name: simulate(model, num_workers, copy, way) for name, way in WAYS.items()}
                now = found["shared"]
                losses = sorted(now.losses.items(), key=lambda loss: -loss[1])
                rows.append(
                    [
                        model.name,
                        str(num_workers),
                        copy,
                        *(f"{100 * each.efficiency:.0f} %" for each in found.values()),
                        f"{found['before'].makespan_s / 3600:.3g}",
                        f"{now.makespan_s / 3600:.3g}",
                        f"{now.work_s:.0f}",
                        "; ".join(f"{name} {s:.0f}" for name, s in losses if s >= 0.01 * now.makespan_s),
                    ]
                )
    return rows


def most_workers() -> list[list[str]]:
    """The most workers of 8, 16, ... 1,024 of whose time `EFFICIENT` is arithmetic and rounding, before and now."""
    rows = []
    for model in MODELS:
        row = [model.name]
        for way in (WAYS["before"], WAYS["shared"]):
            for copy in COPY_BYTES_PER_S:
                counts = (2**k for k in range(10, 2, -1))
                busy = (n for n in counts if simulate(model, n, copy, way).efficiency >= EFFICIENT)
                row.append(str(next(busy, "fewer than 8")))
        rows.append(row)
    return rows


def held() -> list[list[str]]:
    """Gigabytes on the GPU of a worker."""
    rows = []
    for model in MODELS:
        block = 4 * model.num_parameters / model.num_blocks + 4 * model.outside
        ranges = 4 * model.num_parameters * NUM_FORMATS / GROUP_SIZE
        parts = (block, ranges, 3 * 4 * model.largest_group, STATES_BYTES)
        rows.append([model.name, *(f"{part / 1e9:.0f}" for part in parts), f"{sum(parts) / 1e9:.0f}"])
    return rows


def section() -> str:
    """Text and tables."""
    now = "`shared`"
    header = ("model", "workers", "copy", *WAYS, "hours before", f"hours {now}", "work, s", "losses")
    most = ("model", *(f"{when}, {copy}" for when in ("before", "now") for copy in COPY_BYTES_PER_S))
    parts = ("model", "block and outside", "ranges", "largest group", "states", "together")
    return "\n\n".join(
        (
            ASSUMED,
            STEPS,
            table(header, steps()),
            "The most workers, of 8, 16, ... 1,024, of whose time 80 % is work, with the copy on disk and in memory:",
            table(most, most_workers()),
            FITS,
            table(parts, held()),
        )
    )
