"""The codes of all options in work units, a block of the model each, run wherever calibration runs: its first part.

A unit has no shard: what it makes are the files of its weights, and it is done when all of them are there. Every worker
walks through the original by itself up to the blocks that it is given, so a run of W workers costs W passes of the
samples that rounding is fitted on instead of one, and nothing is handed from one to another.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby

from hpcmpq.executors import Executor, Worker
from hpcmpq.executors.batches import Batches, run_batches
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit, content_hash
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.rounding.options import FEWEST_INPUTS, stored_formats
from hpcmpq.space import Member
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.units import missing_batches

_log = logging.getLogger(__name__)


def round_options(
    run: RunDir,
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> int:
    """Make the codes of options that have none, on an executor; see `round_batches`."""
    return run_batches(round_batches(run, on_outcome, part, at_most), executor)


def round_batches(
    run: RunDir,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> Batches[int]:
    """The codes of options that have none; see `hpcmpq.units.missing_batches`.

    Returns:
        How many units are still to be done: none, unless there were more than `at_most`.

    Raises:
        UserError: If a weight cannot have codes, or the model or the samples have changed.
        IncompleteCalibration: If a unit failed for good; what others made is on disk.
    """
    run = replace(run, measuring="round")
    plan = read_plan(run, screened=False)
    own = replace(plan, units=units_of(plan))
    done: list[WorkUnit] = []

    def outcome_seen(outcome: UnitOutcome, num_done: int, total: int) -> None:
        if outcome.error is None:
            done.append(outcome.unit)
        on_outcome(outcome, num_done, total)

    find = partial(pending_units, part=part)
    yield from missing_batches(run, own, _make_worker, outcome_seen, part, at_most, find_pending=find)
    _warn_of_few_inputs(run, plan, done)
    return 0 if at_most is None else len(find(own, run)[0])


def _make_worker(run: RunDir) -> Worker:
    """See `hpcmpq.rounding.worker.make_worker`; models are loaded where codes are made, and nowhere else."""
    from hpcmpq.rounding.worker import make_worker

    return make_worker(run)


def units_of(plan: Plan) -> tuple[WorkUnit, ...]:
    """A unit for the groups of every block that have codes to be made, and for each such group outside the blocks."""
    formats = stored_formats(plan.space, plan.config.quantizer)
    groups = plan.space.groups
    places = [g for g, group in enumerate(groups) if any(member in formats for member in group.members)]
    units = []
    for _, together in groupby(places, lambda g: -1 - g if groups[g].block is None else groups[g].block):
        start, *_ = members = list(together)
        ranges = start, members[-1] + 1
        units.append(WorkUnit(content_hash([plan.fingerprint, "round", *ranges])[:12], *ranges, 0, 1))
    return tuple(units)


def pending_units(
    plan: Plan, run: RunDir, part: tuple[int, int] = (0, 1)
) -> tuple[list[WorkUnit], dict[str, str]]:
    """Units that lack a weight's codes, or whose file is damaged.

    Of processes that share a run directory each reads the files of its own part, and only looks whether the others'
    are there: codes of a large model are as large as the model.
    """
    stored = StoredCodes(run, plan.fingerprint)
    start, stop = (len(plan.units) * number // part[1] for number in (part[0], part[0] + 1))
    missing = []
    for number, unit in enumerate(plan.units):
        found = stored.has if start <= number < stop else stored.is_there
        if not all(map(found, members_of(plan, unit))):
            missing.append(unit)
    return missing, {}


def units_left(run: RunDir) -> int:
    """Units that lack a weight's codes, by the names of files alone."""
    plan = read_plan(run, screened=False)
    stored = StoredCodes(run, plan.fingerprint)
    return sum(not all(map(stored.is_there, members_of(plan, unit))) for unit in units_of(plan))


def members_of(plan: Plan, unit: WorkUnit) -> list[Member]:
    """The weights whose codes a unit makes."""
    formats = stored_formats(plan.space, plan.config.quantizer)
    groups = plan.space.groups[unit.group_start : unit.group_stop]
    return [member for group in groups for member in group.members if member in formats]


def _warn_of_few_inputs(run: RunDir, plan: Plan, units: list[WorkUnit]) -> None:
    """Say how many weights were rounded to the nearest, because next to no sample reaches their layers."""
    stored = StoredCodes(run, plan.fingerprint)
    counts = {m: stored.num_inputs(m) for unit in units for m in members_of(plan, unit)}
    few = {member: count for member, count in counts.items() if count is not None and count < FEWEST_INPUTS}
    if few:
        member = min(few, key=few.__getitem__)
        experts = sum(stored.num_nearest(m) or 0 for m in few)
        _log.warning(
            "%d of %d weights are rounded to the nearest%s, because the samples that rounding is fitted on give their "
            "layers fewer than %d inputs, such as %s with %d; raise calibration.rounding_samples",
            len(few),
            len(counts),
            f", in whole or some of their experts ({experts} in all)" if experts else "",
            FEWEST_INPUTS,
            member.parameter,
            few[member],
        )
