"""A stage that has measured a solution does not put it in the place of one that was solved meanwhile."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmpq.api import stages
from hpcmpq.config import parse_config
from hpcmpq.errors import UserError, exit_status
from hpcmpq.executors.in_process import InProcess
from hpcmpq.store.run_dir import RunDir
from tests.store.tiny_source import save_source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    place = tmp_path_factory.mktemp("meanwhile")
    save_source(place, 120)
    values = {
        "model": {"path": str(place / "model")},
        "calibration": {"data": str(place / "text.txt"), "num_samples": 4, "sequence_length": 16, "held_out": 2},
        "formats": ["int3", "int8"],
        "quantizer": {"group_size": 8},
        "budgets": {"weight_bits": 5.0},
        "solver": {"time_limit_s": 2},
        "refine": {"max_evaluations": 4},
        "evaluation": {"data": str(place / "text.txt"), "num_samples": 2},
    }  # fmt: skip
    run = RunDir(place / "run")
    stages.plan(parse_config(values), run, ())
    stages.calibrate(run, InProcess(), lambda *_: None)
    stages.reduce(run)
    stages.solve(run, {})
    return run


Counted = Callable[[int, int], None]
STAGES: dict[str, Callable[[RunDir, Counted], object]] = {
    "evaluate": lambda run, then: stages.evaluate(run, on_progress=then),
    "refine": lambda run, then: stages.refine(run, InProcess(), then),
    "reround": lambda run, then: stages.reround(run, on_weight=then),
    "reround in units": lambda run, then: stages.reround(run, on_weight=then, pool=InProcess()),
    "evaluate in units": lambda run, then: stages.evaluate(run, on_progress=then, pool=InProcess()),
}


def once(act: Callable[[], object]) -> Counted:
    """A progress that does something the first time it is called."""
    left = [act]

    def progress(done: int, total: int) -> None:
        if left:
            left.pop()()

    return progress


@pytest.mark.parametrize("stage", STAGES)
def test_what_was_solved_meanwhile_stays(solved: RunDir, tmp_path: Path, stage: str):
    run = RunDir(tmp_path / "run")
    shutil.copytree(solved.path, run.path)
    written: list[bytes] = []

    def solve() -> None:
        stages.solve(run, {"weight_bits": 3.5})
        written.append(run.solution_path.read_bytes())

    command = stage.split()[0]
    with pytest.raises(UserError, match=f"run `hpcmpq {command} .*` again") as refused:
        STAGES[stage](run, once(solve))
    assert exit_status(refused.value) == 2
    assert [run.solution_path.read_bytes()] == written
    STAGES[stage](run, lambda *_: None)
    values = json.loads(run.solution_path.read_text())
    assert values["budgets"] == {"weight_bits": 3.5}
    assert {"evaluate": "evaluated_loss"}.get(command, command) in values


@pytest.mark.parametrize("stage", ["reround", "refine"])
def test_what_another_stage_found_of_the_same_solution_stays(solved: RunDir, tmp_path: Path, stage: str):
    run = RunDir(tmp_path / "run")
    shutil.copytree(solved.path, run.path)
    before = json.loads(run.solution_path.read_text())["assignment"]
    STAGES[stage](run, once(lambda: stages.evaluate(run)))
    values = json.loads(run.solution_path.read_text())
    assert stage in values
    kept = values["assignment"] == before and not (values.get("reround") or {}).get("codes")
    assert ("evaluated_loss" in values) == kept
