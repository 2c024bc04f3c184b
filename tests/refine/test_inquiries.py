"""What refinement asks is named after all that an answer depends on."""

from dataclasses import asdict, replace
from pathlib import Path

from hpcmpq.calibrate.neighbourhood import Neighbourhood
from hpcmpq.executors.in_process import InProcess
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.plan import Plan, content_hash, in_rounds
from hpcmpq.refine.asking import Asking
from hpcmpq.refine.inquiries import Around, plan_of
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import synthetic_plan

LAST = int(synthetic_plan().space.offset_G[-1])


def screened(*last: int) -> Plan:
    """The first option of every group, and of the last these more."""
    plan = synthetic_plan()
    return in_rounds(plan, [plan.space.offset_G.tolist(), [LAST + k for k in last]])


def asking(path: Path, plan: Plan) -> Asking:
    nothing = Samples({})
    return Asking(RunDir(path), plan, Splits(nothing, nothing, nothing), InProcess())


def test_an_index_that_means_another_option_by_now_is_another_question():
    few, more = screened(3), screened(2, 3)
    first = Neighbourhood(few.space.uniform("int2"), (28,))  # int5 of the last group, then int4
    names = [plan_of(Around(first), plan).space.formats for plan in (few, more)]
    assert names == [(("int5",),), (("int4",),)]
    assert plan_of(Around(first), few).units[0].id != plan_of(Around(first), more).units[0].id


def test_questions_about_a_run_that_measures_all_keep_their_names():
    plan = synthetic_plan()
    around = Around(Neighbourhood(plan.space.uniform("int4"), (1,)))
    asked = [plan.fingerprint, "around", asdict(around)]
    assert plan_of(around, plan).fingerprint == content_hash(asked)


def test_what_was_agreed_on_holds_for_the_same_options_and_times_alone(tmp_path: Path):
    few, more = screened(3), screened(2, 3)
    timed = replace(few, times={"fingerprint": few.fingerprint, "phases": {}})
    for number, plan in enumerate((few, more, timed)):
        assert asking(tmp_path, plan).agreed(["candidates"], lambda number=number: [number]) == [number]
    assert asking(tmp_path, few).agreed(["candidates"], lambda: [3]) == [0]


def test_what_was_agreed_on_for_another_question_is_made_anew(tmp_path: Path):
    """Files are named after questions; one that lies under the name of another is none of its answers."""
    one = asking(tmp_path, screened(3))
    one.agreed(["candidates"], lambda: [1])
    [first] = (tmp_path / "refine").iterdir()
    one.agreed(["points"], lambda: [2])
    [second] = set((tmp_path / "refine").iterdir()) - {first}
    first.write_bytes(second.read_bytes())
    assert one.agreed(["candidates"], lambda: [3]) == [3]
    assert one.agreed(["candidates"], lambda: [4]) == [3]
    assert one.agreed(["points"], lambda: [5]) == [2]


def test_what_an_older_version_agreed_on_holds(tmp_path: Path):
    """Its files do not say which question they answer."""
    one = asking(tmp_path, screened(3))
    one.agreed(["candidates"], lambda: [1])
    [path] = (tmp_path / "refine").iterdir()
    write_artefact(path, {"agreed": [1]})
    assert one.agreed(["candidates"], lambda: [2]) == [1]


def test_what_another_process_agreed_on_meanwhile_holds(tmp_path: Path):
    """Two that find nothing make answers of their own; the first one's is taken by both."""
    plan = screened(3)

    def slower() -> list[int]:
        asking(tmp_path, plan).agreed(["candidates"], lambda: [1])
        return [2]

    assert asking(tmp_path, plan).agreed(["candidates"], slower) == [1]
