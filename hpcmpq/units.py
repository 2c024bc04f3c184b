"""Running the missing work units of a plan anywhere, one shard each: what every stage does that measures in units."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hpcmpq.errors import IncompleteCalibration
from hpcmpq.executors import Executor, Worker
from hpcmpq.executors.batches import Batches, UnitBatch, run_batches
from hpcmpq.executors.world import node_name
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit
from hpcmpq.store.attempts import read_processes, recording
from hpcmpq.store.bad_nodes import failed_often
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import pending, remove_damaged_shard
from hpcmpq.store.whole_files import remove_abandoned

log = logging.getLogger(__name__)

FindPending = Callable[[Plan, RunDir], tuple[list[WorkUnit], dict[str, str]]]
"""As `hpcmpq.store.shards.pending`."""


def run_missing(
    run: RunDir,
    plan: Plan,
    make_worker: Callable[[RunDir], Worker],
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
    keep: bool = False,
    find_pending: FindPending = pending,
    work: Callable[[WorkUnit], int] | None = None,
) -> None:
    """Measure every missing unit of a plan on an executor; see `missing_batches`, also for what else it takes."""
    wanted = missing_batches(
        run, plan, make_worker, on_outcome, part, at_most, keep=keep, find_pending=find_pending, work=work
    )
    run_batches(wanted, executor)


def missing_batches(
    run: RunDir,
    plan: Plan,
    make_worker: Callable[[RunDir], Worker],
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
    *,
    keep: bool = False,
    find_pending: FindPending = pending,
    work: Callable[[WorkUnit], int] | None = None,
) -> Batches[None]:
    """Every missing unit of a plan; damaged shards are removed first, and no others.

    Others may finish units meanwhile: where shards are many, looking at them takes minutes.

    Args:
        run: Where its shards are.
        plan: Its units and fingerprint.
        make_worker: Makes what measures a unit and writes its shard; picklable by reference.
        on_outcome: Called with each outcome, the number of units done and of all units.
        part: (i, n): of n processes that share the run directory this is number i; each starts elsewhere.
        at_most: Stop after this many units.
        keep: See `hpcmpq.executors.Executor.run`.
        find_pending: Which units are missing, and of those that are damaged {id: a sentence}.
        work: What the time of a unit grows with; by default its size.

    Raises:
        IncompleteCalibration: If a unit failed for good; all others are on disk.
    """
    remove_abandoned(run.shards_path)
    units, damaged = find_pending(plan, run)
    num_missing = len(units)
    units = starting_from(units, plan.units, *part, work)[:at_most]
    for sentence in damaged.values():
        log.warning("%s", sentence)
    if not units:
        return
    for unit in units:
        if unit.id in damaged:
            remove_damaged_shard(plan, run, unit)
    done = len(plan.units) - num_missing
    failed = []
    here, often = node_name(), failed_often(read_processes(run))
    # What fails on this node comes last: another node may have done it by then.
    last = [unit for unit in units if here in often.get(unit.id, ())]
    batches = [batch for batch in ([unit for unit in units if unit not in last], last) if batch]
    recipe = partial(make_worker, run)
    with recording(run, here) as record:

        def seen(outcome: UnitOutcome) -> None:
            nonlocal done
            done += outcome.error is None
            if outcome.error is not None and outcome.final:
                failed.append(outcome)
            record(outcome)
            on_outcome(outcome, done, len(plan.units))

        for batch in batches:
            yield UnitBatch(recipe, batch, seen, keep or batch is not batches[-1])
    if failed:
        raise IncompleteCalibration(
            f"{len(failed)} of {len(plan.units)} units failed, first {failed[0].unit}: {failed[0].error}; "
            f"the others are on disk, run `{run.command}` again"
        )


def starting_from(
    units: Iterable[WorkUnit],
    all_units: Sequence[WorkUnit],
    index: int,
    num_parts: int,
    work: Callable[[WorkUnit], int] | None = None,
) -> list[WorkUnit]:
    """The units in the order in which process `index` of `num_parts` should work on them.

    A process that hands out all units begins with those of most work, so that the last ones are short; of as much work
    those of the same groups are neighbours, so that a worker chooses ranges of few weights at a time. Where `work` is
    not known it is the size of a unit, and units of a size stay in the order of `all_units`. Of several
    processes, whose parts are to take equally long, each does first its own part of `all_units` forwards, then the
    other parts backwards from its own, so that a process which is done early meets the one that it helps at that one's
    last unit.

    Example:
        >>> from hpcmpq.plan import make_units
        >>> units = make_units("f", 1, 6, groups_per_unit=1, samples_per_unit=1)
        >>> [unit.sample_start for unit in starting_from(units, units, 1, 3)]
        [2, 3, 1, 0, 5, 4]
        >>> units = make_units("f", 2, 3, groups_per_unit=1, samples_per_unit=1)
        >>> [str(unit)[13:] for unit in starting_from(units, units, 0, 1, lambda unit: 2 - unit.group_start)][2:4]
        ['(groups 0-0, samples 2-2)', '(groups 1-1, samples 0-0)']
    """
    if num_parts == 1 and work is not None:
        return sorted(units, key=lambda unit: (-work(unit), unit.group_start, unit.sample_start))
    start, stop = (len(all_units) * part // num_parts for part in (index, index + 1))
    order = [*all_units[start:stop], *reversed(all_units[:start]), *reversed(all_units[stop:])]
    place = {unit.id: number for number, unit in enumerate(order)}
    return sorted(units, key=lambda unit: (-unit.size if num_parts == 1 else 0, place[unit.id]))
