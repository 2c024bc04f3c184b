"""A screened run of a tiny model beside one that measures everything: same numbers, same solution, same bits."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.api import limits, stages
from hpcmpq.api.several import calibrate_several
from hpcmpq.batch.status import read_status
from hpcmpq.config import read_config
from hpcmpq.errors import DamagedFile, Infeasible, PlanMismatch, UserError
from hpcmpq.executors.in_process import InProcess
from hpcmpq.plan import Plan
from hpcmpq.screening import stage
from hpcmpq.solve import stage as solve_stage
from hpcmpq.solve.formulate import make_problem
from hpcmpq.space import SearchSpace
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.screening_rounds import round_path
from hpcmpq.store.solution_file import read_solution
from tests.calling import ROOT
from tests.executors.desk_here import Here
from tests.executors.tiny_model import write_config
from tests.executors.toy_units import shards

pytestmark = pytest.mark.slow


def planned(path: Path, screen: bool = True, bits: float = 3.6) -> RunDir:
    """A planned run of three groups and four formats, in units of one group and four samples."""
    config = write_config(path.with_suffix(".yaml"))
    text = config.read_text().replace("formats: [int2, int4]", "formats: [int2, int3, int4, int8]")
    text = text.replace("weight_bits: 3.0", f"weight_bits: {bits}")
    text = text.replace("groups_per_unit: 1", f"groups_per_unit: 1, screen: {str(screen).lower()}")
    config.write_text(text)
    run = RunDir(path)
    stages.plan(read_config(config), run, (str(ROOT),))
    return run


def calibrated(run: RunDir, part: tuple[int, int] = (0, 1), at_most: int | None = None) -> Plan:
    stages.calibrate(run, InProcess(), lambda *_: None, part, at_most)
    return read_plan(run)


def solved(run: RunDir, **budgets: float) -> dict:
    stages.reduce(run)
    return stages.solve(run, budgets)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = planned(tmp_path_factory.mktemp("whole") / "run", screen=False)
    calibrated(run)
    solved(run)
    return run


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = planned(tmp_path_factory.mktemp("screened") / "run")
    calibrated(run)
    solved(run)
    return run


def test_beside_another_run_on_the_same_worker_a_screened_one_has_the_bits_that_it_has_alone(
    tmp_path: Path, whole: RunDir
):
    runs = [planned(tmp_path / "screened"), planned(tmp_path / "whole", screen=False)]
    alone = planned(tmp_path / "alone")
    calibrated(alone)
    stages.reduce(alone)
    assert not calibrate_several(runs, Here(), lambda *_: None)
    assert len(read_plan(runs[0]).rounds) == len(read_plan(alone).rounds) >= 1
    for run, other in zip(runs, (alone, whole), strict=True):
        assert shards(run.path) == shards(other.path)
        stages.reduce(run)
        assert run.quadratic_path.read_bytes() == other.quadratic_path.read_bytes()


def assert_part_of(run: RunDir, whole: RunDir) -> None:
    """What a screened run measured is what one measures that measures everything."""
    space, everything = read_plan(run).space, read_plan(whole).space
    index = everything.places_of(space.options, space)
    own, other = read_quadratic(run.quadratic_path), read_quadratic(whole.quadratic_path)
    both = np.ix_(index, index)
    for name in ("linear_P", "stderr_linear_P"):
        np.testing.assert_allclose(getattr(own, name), getattr(other, name)[index], rtol=1e-5, atol=1e-9)
    for name in ("quad_PP", "stderr_quad_PP"):
        np.testing.assert_allclose(getattr(own, name), getattr(other, name)[both], rtol=1e-4, atol=1e-9)
    assert own.option_format == tuple(option.format for option in space.options)


def test_fewer_options_are_measured_with_the_same_numbers_and_solution(screened: RunDir, whole: RunDir):
    plan, solution = read_plan(screened), read_json(screened.solution_path, "")
    assert plan.space.num_options < plan.whole_space.num_options == read_plan(whole).space.num_options
    assert_part_of(screened, whole)
    assert solution["assignment"] == read_json(whole.solution_path, "")["assignment"]
    assert solution["screening"] == {
        "measured": plan.space.num_options,
        "options": plan.whole_space.num_options,
        "rounds": len(plan.rounds),
        "wanted": {},
    }
    assert "screening" not in read_json(whole.solution_path, "")


def test_interrupted_shared_and_damaged_runs_end_with_the_same_bits(tmp_path: Path, screened: RunDir):
    run = planned(tmp_path / "run")
    for number in range(40):  # a unit each, by two processes in turn
        plan = calibrated(run, (number % 2, 2), 1)
        if number == 8:
            round_path(run, 1).write_text("{")
            for shard in run.shards_path.glob("*.h5"):
                shard.write_bytes(shard.read_bytes()[:100])
    assert plan.space == read_plan(screened).space
    solved(run)
    assert_same_bits(run, screened)


def few_at_first(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first round measures int2 and int4 alone."""
    few = [option.index for option in space.options if option.format in ("int2", "int4")]
    monkeypatch.setattr(stage, "first_options", lambda *_: few)
    return few


def another_plans(path: Path) -> None:
    write_artefact(path, {**read_json(path, ""), "fingerprint": "another"})


def nothing(path: Path) -> None:
    path.write_text("{}")


def the_first(path: Path) -> None:
    path.write_bytes(path.with_name("round_1.json").read_bytes())


def test_rounds_of_another_plan_or_place_or_gone_before_others_are_chosen_anew(
    tmp_path: Path, screened: RunDir, monkeypatch: pytest.MonkeyPatch
):
    """What was measured stays; before, all options were measured, or those of the first rounds alone were reduced."""
    few_at_first(read_plan(screened).whole_space, monkeypatch)
    run = planned(tmp_path / "run")
    measured = calibrated(run)
    assert len(measured.rounds) > 1
    solution = solved(run)["assignment"]
    shards = {path.name for path in run.shards_path.iterdir()}
    for number, harm in (
        (1, another_plans),
        (2, another_plans),
        (2, the_first),
        (2, nothing),
        (1, Path.unlink),
        (2, Path.unlink),
    ):
        harm(round_path(run, number))
        if (number, harm) != (1, another_plans):  # that is a run planned anew, which is not screened yet
            with pytest.raises(DamagedFile, match=r"round_\d\.json .*run `hpcmpq calibrate"):
                stages.reduce(run)
        assert calibrated(run).space == measured.space
        assert {path.name for path in run.shards_path.iterdir()} == shards
        assert solved(run)["assignment"] == solution


def test_another_plans_solution_wants_nothing_here(tmp_path: Path, screened: RunDir):
    run = RunDir(Path(shutil.copytree(screened.path, tmp_path / "run")))
    plan, solution = read_plan(run), read_json(run.solution_path, "")
    measured = {group.name: names for group, names in zip(plan.space.groups, plan.space.formats, strict=True)}
    wanted = {
        group.name: [name for name in names if name not in measured[group.name]]
        for group, names in zip(plan.whole_space.groups, plan.whole_space.formats, strict=True)
    }
    assert any(wanted.values())
    screening = {**solution["screening"], "wanted": wanted}
    write_artefact(
        run.solution_path, {**solution, "screening": screening, "fingerprint": "another", "budgets": {}}
    )
    assert calibrated(run).space == plan.space
    write_artefact(run.solution_path, {**solution, "screening": screening})
    assert calibrated(run).space == plan.whole_space


def test_a_solution_of_options_that_are_measured_no_more_is_refused(tmp_path: Path, screened: RunDir):
    run = RunDir(Path(shutil.copytree(screened.path, tmp_path / "run")))
    space, chosen = read_plan(run).whole_space, read_json(run.solution_path, "")["assignment"]
    group = next(group.name for group in space.groups if chosen[group.name] != "int2")
    first, *others = sorted((run.path / "screen").glob("round_*.json"))
    values = read_json(first, "")
    kept = [i for i in values["options"] if space.groups[space.options[i].group].name != group]
    kept += [o.index for o in space.options if space.groups[o.group].name == group and o.format == "int2"]
    for path in others:
        path.unlink()
    write_artefact(first, {**values, "options": kept})
    says = rf"gives {group} '{chosen[group]}', and what is measured, .* is int2; run `hpcmpq reduce .*hpcmpq solve"
    with pytest.raises(PlanMismatch, match=says):
        read_solution(run)
    assert not {each.name: each.done for each in read_status(run).stages}["solve"]
    calibrated(run)
    solved(run)
    assert read_solution(run)["assignment"]


def assert_same_bits(run: RunDir, other: RunDir) -> None:
    own, theirs = read_quadratic(run.quadratic_path), read_quadratic(other.quadratic_path)
    for name in ("linear_P", "quad_PP", "stderr_linear_P", "stderr_quad_PP", "batch_quad_BPP"):
        np.testing.assert_array_equal(getattr(own, name), getattr(theirs, name))


def test_a_first_choice_that_lacks_the_solution_is_made_up_for(
    tmp_path: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch
):
    """The first round measures int2 and int4 alone, which is feasible and worse: the next go back for the others."""
    space = read_plan(whole).space
    few = few_at_first(space, monkeypatch)
    run = planned(tmp_path / "run")
    plan = calibrated(run)
    solution = read_json(whole.solution_path, "")["assignment"]
    assert "int3" in solution.values()
    assert len(plan.rounds) > 1 and plan.rounds[0].space == space.among(few)
    assert solved(run)["assignment"] == solution
    assert_part_of(run, whole)


def test_other_budgets_say_what_they_want_and_the_next_calibration_measures_it(
    tmp_path: Path, whole: RunDir, caplog: pytest.LogCaptureFixture
):
    run = planned(tmp_path / "run")
    before = calibrated(run).space.num_options
    caplog.clear()
    solution = solved(run, weight_bits=7.5)
    wanted = solution["screening"]["wanted"]
    assert wanted
    [warning] = [record.getMessage() for record in caplog.records if "were not measured" in record.message]
    assert f"`hpcmpq calibrate {run.path}` measures them" in warning
    after = calibrated(run)
    assert after.space.num_options >= before + sum(map(len, wanted.values()))
    solution = solved(run, weight_bits=7.5)
    assert_part_of(run, whole)
    assert solution["assignment"] == stages.solve(whole, {"weight_bits": 7.5})["assignment"]
    stages.solve(whole, {})


def test_smaller_budgets_than_what_is_measured_reaches_are_measured_when_planned(
    tmp_path: Path, whole: RunDir, monkeypatch: pytest.MonkeyPatch
):
    wide = [o.index for o in read_plan(whole).space.options if o.format in ("int4", "int8")]
    monkeypatch.setattr(stage, "first_options", lambda *_: wide)
    run = planned(tmp_path / "run", bits=4.0)
    calibrated(run)
    with pytest.raises(
        Infeasible, match="were not measured, .* set these budgets in the config and `hpcmpq run`"
    ):
        solved(run, weight_bits=2.6)
    planned(run.path, bits=2.6)
    calibrated(run)
    assert solved(run)["assignment"] == stages.solve(whole, {"weight_bits": 2.6})["assignment"]
    stages.solve(whole, {})
    assert_part_of(run, whole)


def test_a_budget_on_time_leaves_open_what_is_wanted(screened: RunDir, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(solve_stage, "make_problem", lambda p, m, budgets, s: make_problem(p, m, {}, s))
    monkeypatch.setattr(solve_stage, "describe", lambda *_: {})
    values = solve_stage.solve(screened, {"latency_s": 1.0}, read_plan(screened).config.solver)
    assert values["screening"]["wanted"] == {}
    monkeypatch.undo()
    solution = stages.solve(screened, {}) | {"budgets": {"latency_s": 1.0}}
    write_artefact(screened.solution_path, solution)
    assert calibrated(screened).space.num_options == values["screening"]["measured"]  # nothing is asked of it
    stages.solve(screened, {})


def test_later_stages_have_the_measured_options_alone(screened: RunDir, caplog: pytest.LogCaptureFixture):
    plan = read_plan(screened)
    names = {
        group.name: formats for group, formats in zip(plan.space.groups, plan.space.formats, strict=True)
    }
    refined = stages.refine(screened, InProcess())
    assert all(refined["assignment"][group] in formats for group, formats in names.items())
    assert refined["screening"]["measured"] == plan.space.num_options
    evaluation = stages.evaluate(screened)
    assert all(evaluation["uniform_format"] in formats for formats in names.values())
    with caplog.at_level(logging.INFO):
        points = limits.frontier(screened, "weight_bits", 3.0, 4.0, 0.5)["points"]
    assert "options were not measured, since the budgets cannot choose them" in caplog.text
    assert all(point["assignment"][group] in names[group] for point in points for group in names)
    text = stages.report(screened).read_text()
    assert f"{plan.space.num_options} options of 12; the others were ruled out (sensitivity.screen)" in text


def test_planning_again_keeps_the_whole_space_and_what_is_measured(screened: RunDir):
    plan = read_plan(screened)
    config = read_config(screened.path.with_suffix(".yaml"))
    stages.plan(config, screened, (str(ROOT),))
    assert read_plan(screened, screened=False).space == plan.whole_space
    assert read_plan(screened) == plan


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("method: secant", "method: fisher", "sensitivity.screen is for secant"),
        ("budgets: {weight_bits: 3.0}", "budgets: {}", "name a budget"),
        ("budgets: {weight_bits: 3.0}", "budgets: {latency_s: 1.0}", "latency_s does not"),
        ('include: ["*"]', 'include: ["*"], kv_cache: [fp8_e4m3, bf16]', "leave out groups.kv_cache"),
        ("time_limit_s: 5", "time_limit_s: 5, robust_k: 1", "set solver.robust_k: 0"),
    ],
)
def test_what_cannot_be_screened_is_refused_with_what_to_do(tmp_path: Path, old: str, new: str, says: str):
    config = write_config(tmp_path / "config.yaml")
    text = config.read_text().replace("groups_per_unit: 1", "screen: true")
    assert old in text
    config.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=says):
        stages.plan(read_config(config), RunDir(tmp_path / "run"), (str(ROOT),))
