"""Where a run stands, from its files and from the batch system where there is one; works on any login node."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from hpcmpq.batch.memory import memory_here
from hpcmpq.batch.scheduler import scheduler_of
from hpcmpq.batch.stages_done import Stage, read_whole, stages_of
from hpcmpq.plan import Plan
from hpcmpq.store.attempts import Attempt, CalibrateProcess, failures, read_all_processes
from hpcmpq.store.bad_nodes import bad_nodes
from hpcmpq.store.jobs_file import read_submissions
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_tokens
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import pending

RECENT_UNITS = 50
"""Throughput is that of the units finished last: nodes come and go."""


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    Attributes:
        stages: In order.
        num_units: Work units of the plan.
        num_done: Units with a valid shard.
        units_per_s: Throughput of the last units, or None before the first.
        busy_workers: How many workers measured them at once, on average, or None before the first.
        memory_bytes: Resident memory of processes on this machine that run units, or None where none does.
        seconds_left: Until the last unit at that throughput, or None.
        failed: {unit as text: error} of missing units whose last attempt failed, and of those of stages that are not
            done.
        bad_nodes: {node: units that failed again and again there and on no other}.
        damaged: A sentence for each shard or artefact that has to be made again.
        jobs: (job, the scheduler's id, state) of the latest submission.
        expert_tokens: Calibration tokens that each expert of each layer was given, once calibration is reduced; empty
            where there are no experts, or nothing counted them.
    """

    stages: tuple[Stage, ...]
    num_units: int
    num_done: int
    units_per_s: float | None
    busy_workers: float | None
    memory_bytes: int | None
    seconds_left: float | None
    failed: dict[str, str]
    bad_nodes: dict[str, int]
    damaged: tuple[str, ...]
    jobs: tuple[tuple[str, str, str], ...]
    expert_tokens: tuple[tuple[int, ...], ...] = ()


def read_status(run: RunDir, verified: set[str] | None = None) -> Status:
    """The status of a run directory. Reads every shard, for damage.

    Args:
        run: The run directory.
        verified: For whoever asks again and again: the units whose shards need not be read again, see
            `hpcmpq.store.shards.pending`.

    Raises:
        UserError: If it has no plan, and says of no submitted jobs.
    """
    broken: list[str] = []
    jobs = read_whole(broken, lambda: job_states(run)) or ()
    if (jobs or broken) and not run.plan_path.exists():
        return Status((), 0, 0, None, None, None, None, {}, {}, tuple(broken), jobs)
    plan = read_plan(run)
    missing, damaged = pending(plan, run, verified)
    seen = read_all_processes(run)
    processes = seen["calibrate"]
    errors = failures(processes)
    recent = latest_attempts(plan, processes)
    rate, busy = throughput(recent), busy_workers(recent)
    stages = stages_of(run, plan, not missing, broken)
    done = {stage.name: stage.done for stage in stages}
    # Rounding again may be asked for by hand, where the config does not name it.
    left = {"screen": not plan.rounds, "reround": True} | {
        name: not is_done for name, is_done in done.items()
    }
    return Status(
        stages=stages,
        num_units=len(plan.units),
        num_done=len(plan.units) - len(missing),
        units_per_s=rate,
        busy_workers=busy,
        memory_bytes=memory_here(run),
        seconds_left=len(missing) / rate if rate and missing else None,
        failed={str(unit): errors[unit.id] for unit in missing if unit.id in errors}
        | _failed_elsewhere({name: those for name, those in seen.items() if left.get(name)}),
        bad_nodes=bad_nodes(chain.from_iterable(seen.values())),
        damaged=(*damaged.values(), *broken),
        jobs=jobs,
        expert_tokens=read_tokens(run.quadratic_path) if done.get("reduce") else (),
    )


def _failed_elsewhere(seen: Mapping[str, Iterable[CalibrateProcess]]) -> dict[str, str]:
    """{unit as text: error} of units that are not calibration's, and failed last."""
    return {
        f"{unit_id} of {name}": error
        for name, processes in seen.items()
        for unit_id, error in failures(processes).items()
        if name != "calibrate"
    }


def latest_attempts(plan: Plan, processes: Iterable[CalibrateProcess]) -> list[Attempt]:
    """Those of the `RECENT_UNITS` units that were finished last, in order of time."""
    known = {unit.id for unit in plan.units}
    latest: dict[str, Attempt] = {}
    for process in processes:
        for attempt in process.attempts:
            before = latest.get(attempt.unit_id)
            # The longest: a process that finds a unit done by another reports almost no time for it.
            if attempt.error is None and (before is None or before.seconds < attempt.seconds):
                latest[attempt.unit_id] = attempt
    found = sorted((a for name, a in latest.items() if name in known), key=lambda a: a.finished)
    return found[-RECENT_UNITS:]


def throughput(recent: Iterable[Attempt]) -> float | None:
    """Units per second, over the time in which at least one was measured."""
    recent = list(recent)
    busy = _busy_s(recent)
    return len(recent) / busy if busy > 0 else None


def busy_workers(recent: Iterable[Attempt]) -> float | None:
    """Units that were measured at once on average, over the same time."""
    recent = list(recent)
    busy = _busy_s(recent)
    return sum(attempt.seconds for attempt in recent) / busy if busy > 0 else None


def _busy_s(recent: Iterable[Attempt]) -> float:
    return covered((attempt.finished - attempt.seconds, attempt.finished) for attempt in recent)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals.

    Example:
        >>> covered([(0.0, 2.0), (1.0, 3.0), (10.0, 11.0)])
        4.0
    """
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def job_states(run: RunDir) -> tuple[tuple[str, str, str], ...]:
    """(job, id, state) of the latest submission."""
    submissions = read_submissions(run)
    if not submissions:
        return ()
    submission = submissions[-1]
    jobs: dict[str, str] = submission["jobs"]
    system = scheduler_of(submission.get("scheduler", "slurm"))
    unknown = "unknown" if shutil.which(system.command) else f"unknown: no {system.title} here"
    states = system.states(run, list(jobs.values()))
    return tuple((name, number, states.get(number, unknown)) for name, number in jobs.items())
