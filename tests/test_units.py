"""The order in which processes work on units: longest first, the same groups together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hpcmpq.calibrate.stage import calibrate
from hpcmpq.executors import Worker
from hpcmpq.executors.in_process import InProcess
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit, make_units, plan_to_json
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, pending, write_shard
from hpcmpq.units import run_missing, starting_from
from tests.synthetic_run import NUM_BLOCKS, synthetic_plan

PLAN = synthetic_plan()


def in_parts(groups_per_unit: int, samples_per_unit: int) -> Plan:
    """28 groups in 4 blocks, seven formats each, and 64 samples, in units of some of both."""
    sizes = {"groups_per_unit": groups_per_unit, "samples_per_unit": samples_per_unit}
    return replace(PLAN, units=make_units("f", len(PLAN.space.groups), 64, **sizes))


def test_the_work_of_a_unit_is_counted_by_hand():
    plan = in_parts(7, 16)
    first, *_, last = plan.units
    assert (first.group_stop, last.group_start) == (7, 21)
    # 16 samples: the original through four blocks, and 49 options through four blocks or one.
    assert plan.work_of(first) == 16 * (NUM_BLOCKS + 49 * 4)
    assert plan.work_of(last) == 16 * (NUM_BLOCKS + 49 * 1)
    settings = replace(plan.config.sensitivity, engine="whole")
    whole = replace(plan, config=replace(plan.config, sensitivity=settings))
    assert whole.work_of(first) == whole.work_of(last) == 16 * (NUM_BLOCKS + 49 * 4)
    outside = replace(
        plan.space,
        groups=tuple(replace(g, block=None) for g in plan.space.groups[:7]) + plan.space.groups[7:],
    )
    assert replace(plan, space=outside).work_of(first) == plan.work_of(first)


@given(st.integers(2, 28), st.integers(4, 16), st.randoms())
def test_one_process_begins_with_most_work_whatever_is_missing(groups: int, samples: int, random):
    plan = in_parts(groups, samples)
    missing = random.sample(plan.units, random.randint(1, len(plan.units)))
    order = starting_from(missing, plan.units, 0, 1, plan.work_of)
    assert sorted(unit.id for unit in order) == sorted(unit.id for unit in missing)
    works = [plan.work_of(unit) for unit in order]
    assert works == sorted(works, reverse=True)


def test_parts_of_several_processes_have_units_of_all_groups():
    plan = in_parts(7, 16)
    first = starting_from(plan.units, plan.units, 0, 4, plan.work_of)
    assert [unit.group_start for unit in first[:4]] == [0, 7, 14, 21]


def test_units_of_as_much_work_follow_those_of_their_groups():
    plan = in_parts(7, 16)
    whole = starting_from(plan.units, plan.units, 0, 1, plan.work_of)
    assert [(unit.group_start, unit.sample_start) for unit in whole] == [
        (group, sample) for group in (0, 7, 14, 21) for sample in (0, 16, 32, 48)
    ]
    alike = starting_from(plan.units, plan.units, 0, 1)
    assert alike == list(plan.units), "without work those of a size stay as they are"


def test_without_work_the_largest_come_first():
    plan = in_parts(8, 48)  # the last range has 16 samples, the last groups are 4
    order = starting_from(plan.units, plan.units, 0, 1)
    assert [unit.size for unit in order] == [384, 384, 384, 192, 128, 128, 128, 64]
    assert [unit.group_start for unit in order[:3]] == [0, 8, 16]


class Notes:
    """An executor that writes nothing down but the order."""

    def __init__(self) -> None:
        self.order: list[WorkUnit] = []

    def run(
        self, make_worker: Callable[[], Worker], units: Sequence[WorkUnit], keep: bool = False
    ) -> Iterator[UnitOutcome]:
        self.order += units
        yield from (UnitOutcome(unit, 1.0) for unit in units)


def test_calibration_hands_out_the_longest_units_first(tmp_path):
    run, plan, executor = RunDir(tmp_path), in_parts(7, 16), Notes()
    write_json(run.plan_path, plan_to_json(plan))
    calibrate(run, executor, lambda *_: None)
    assert executor.order == starting_from(plan.units, plan.units, 0, 1, plan.work_of) != list(plan.units)
    second = Notes()
    calibrate(run, second, lambda *_: None, part=(1, 3))
    assert second.order == starting_from(plan.units, plan.units, 1, 3, plan.work_of)


def test_shards_that_others_write_while_this_process_looks_stay(tmp_path):
    run, (missing, damaged, renewed, *_) = RunDir(tmp_path), PLAN.units

    def finish(unit: WorkUnit) -> None:
        write_shard(run, Shard("sums", unit.id, PLAN.fingerprint, 1, 1, {}))

    def look(plan: Plan, run: RunDir) -> tuple[list[WorkUnit], dict[str, str]]:
        for unit in (damaged, renewed):
            finish(unit)
            run.shard_path(unit.id).write_bytes(b"torn")
        found = pending(plan, run)
        finish(missing)
        finish(renewed)
        return found

    run_missing(run, PLAN, noting, Notes(), lambda *_: None, find_pending=look)
    assert {path.stem for path in run.shards_path.iterdir()} == {missing.id, renewed.id}


MEASURED: list[WorkUnit] = []


def noting(_run: RunDir) -> Worker:
    return MEASURED.append


def test_workers_are_given_the_longest_first_where_units_are_uneven(tmp_path):
    plan = in_parts(8, 12)  # the last range has 4 samples, the last groups are 4
    large_but_short = next(unit for unit in plan.units if (unit.group_start, unit.sample_start) == (24, 0))
    small_but_long = next(unit for unit in plan.units if (unit.group_start, unit.sample_start) == (0, 60))
    assert large_but_short.size > small_but_long.size
    MEASURED.clear()
    run_missing(RunDir(tmp_path), plan, noting, InProcess(), lambda *_: None, work=plan.work_of)
    assert len(MEASURED) == len(plan.units)
    works = [plan.work_of(unit) for unit in MEASURED]
    assert works == sorted(works, reverse=True)
    assert MEASURED.index(small_but_long) < MEASURED.index(large_but_short)
