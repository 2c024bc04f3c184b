"""Workers that serve several runs of a streamed model, simulated: side by side, one allocation for all.

Units are cut, ordered and shared out by the package's own functions, how long they take is that of
`bench.streamed_workers`. `python -m bench.scaling` prints the table.
"""

import heapq
from collections import Counter
from functools import partial

import numpy as np

from bench.results import table
from bench.streamed_workers import (
    COPY_BYTES_PER_S,
    MODELS,
    READINGS,
    SPREAD,
    STARTUP_S,
    TO_DEVICE,
    WORKERS_PER_NODE,
    Simulated,
    Streamed,
    choices_of_a_worker,
    copying,
    plan_of,
    unit_seconds,
)
from hpcmpq.executors import Worker
from hpcmpq.executors.backlog import Backlog
from hpcmpq.executors.batches import Batches, UnitBatch
from hpcmpq.executors.desk import SharedDesk
from hpcmpq.plan import UnitOutcome, WorkUnit
from hpcmpq.planning.scaling import Site, read_seconds
from hpcmpq.units import starting_from

TEXT = """Several runs of a model in one allocation, `hpcmpq calibrate RUN RUN ... --executor mpi`: each is a
calibration as above (`shared`), in units that were cut for half of the workers; one run alone is as above, cut for all.
Copying files and starting is lost once for all runs, and few units are left at the end of the last one only; a run has
a share of the workers, so that checking the model takes less of their time. A worker that goes to another run checks
its model and reads its ranges again. The files of the model are copied once. `hours` are those until all runs are done,
and in brackets those of as many, one after the other, each alone on all workers. Losses are those of the most runs, in
seconds of a worker."""

NUM_RUNS = (1, 2, 4, 8)
NUM_WORKERS = (512, 1024)


def no_worker(number: int) -> Worker:
    """Tells runs apart; nothing is measured here."""
    raise AssertionError(f"run {number} is simulated")


def simulate(
    model: Streamed, num_workers: int, copy: str, num_runs: int, cut_for: int | None = None
) -> Simulated:
    """Runs side by side, in units cut for so many workers; without a number for half of them, or all of one run."""
    share = num_workers // num_runs
    cut_for = cut_for or (num_workers if num_runs == 1 else num_workers // 2)
    plan, rate = plan_of(model, cut_for), COPY_BYTES_PER_S[copy]
    order = starting_from(plan.units, plan.units, 0, 1, plan.work_of)

    def batches(number: int) -> Batches[None]:
        yield UnitBatch(partial(no_worker, number), order, lambda _: None)

    checking = READINGS * model.file_bytes * (1 / rate + 2 / TO_DEVICE)
    num_groups = len(plan.space.groups)
    choosing = model.ranges_s / num_groups * choices_of_a_worker(num_groups, share)
    site = Site(WORKERS_PER_NODE)
    first_s = checking + choosing + read_seconds(model.scale_bytes, site, num_workers)
    next_s = checking + read_seconds(model.scale_bytes, site, WORKERS_PER_NODE)
    desk = SharedDesk([batches(k) for k in range(num_runs)], _never, num_workers, at_once=True)
    generator = np.random.default_rng(0)
    lost: Counter[str] = Counter()
    work, free = 0.0, [(0.0, number) for number in range(num_workers)]
    held: list[Backlog | None] = [None] * num_workers
    last: dict[int, WorkUnit] = {}
    end = 0.0
    while free:
        now, worker = heapq.heappop(free)
        if (backlog := held[worker]) is not None:
            desk.seen(backlog, UnitOutcome(last[worker], 0.0))
        if (handed := desk.take(held[worker])) is None:
            continue
        backlog, unit = handed
        last[worker] = unit
        if backlog is not held[worker]:
            name = "starting" if held[worker] is None else "going to another run"
            before_s = first_s if held[worker] is None else next_s
            lost[name] += before_s
            now += before_s
            held[worker] = backlog
        samples = unit.sample_stop - unit.sample_start
        all_s, own_s = unit_seconds(model, unit.group_start, unit.group_stop, rate, True)
        varied = samples * all_s * float(np.exp(generator.normal(0.0, SPREAD)))
        work += samples * own_s
        lost["waiting for blocks"] += varied - samples * own_s
        end = max(end, now + varied)
        heapq.heappush(free, (now + varied, worker))
    makespan = end + STARTUP_S + copying(model, num_workers, True)
    losses = {name: seconds / num_workers for name, seconds in lost.items()}
    losses["starting"] += STARTUP_S + copying(model, num_workers, True)
    losses["idle at the end"] = makespan - work / num_workers - sum(losses.values())
    return Simulated(makespan, work / num_workers, losses)


def _never(number: int, error: Exception) -> None:
    raise AssertionError(f"run {number}: {error}")


def rows() -> list[list[str]]:
    """Efficiency and hours by how many runs share the workers, and where the time goes with most runs."""
    found = []
    for model in MODELS:
        for num_workers in NUM_WORKERS:
            for copy in COPY_BYTES_PER_S:
                made = {n: simulate(model, num_workers, copy, n) for n in NUM_RUNS}
                hours = (
                    f"{m.makespan_s / 3600:.3g} ({n * made[1].makespan_s / 3600:.3g})"
                    for n, m in made.items()
                )
                losses = sorted(made[NUM_RUNS[-1]].losses.items(), key=lambda loss: -loss[1])
                cells = [f"{100 * each.efficiency:.0f} %" for each in made.values()]
                limit_s = 0.01 * made[NUM_RUNS[-1]].makespan_s
                told = "; ".join(f"{name} {s:.0f}" for name, s in losses if s >= limit_s)
                found.append([str(num_workers), model.name, copy, *cells, *list(hours)[1:], told])
    return found


def section() -> str:
    """Text and table."""
    runs = [f"{n} run{'s' if n > 1 else ''}" for n in NUM_RUNS]
    hours = [f"hours, {each}" for each in runs[1:]]
    header = ("workers", "model", "copy", *runs, *hours, f"losses of {runs[-1]}, s")
    return f"{TEXT}\n\n{table(header, rows())}"
