"""Stages that end at once all find their way into RUN/timings.json."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hpcmpq.api.stages import stage
from hpcmpq.store import timings
from hpcmpq.store.json_files import read_json, write_artefact, write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.timings import keep_timing, read_timings
from tests.synthetic_run import write_run


def stages(run: RunDir) -> set[str]:
    return set(read_json(run.file("timings.json"), ""))


def test_a_stage_that_ends_while_another_writes_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunDir(tmp_path)
    others = ["evaluate", "report"]

    def write_late(path: Path, values: dict[str, Any]) -> None:
        if path.name == "timings.json" and others:
            keep_timing(run, others.pop(), 2.0, "now")
        write_artefact(path, values)

    monkeypatch.setattr(timings, "write_artefact", write_late)
    with stage(run, "export"):
        pass
    assert stages(run) == set(read_timings(run)) == {"export", "evaluate", "report"}
    assert read_json(run.file("timings.json"), "")["report"] == {"seconds": 2.0, "finished": "now"}


def test_many_stages_at_once(tmp_path: Path):
    names = [f"stage{number}" for number in range(12)]

    def run_stage(name: str) -> None:
        with stage(RunDir(tmp_path), name):
            pass

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run_stage, names))
    assert stages(RunDir(tmp_path)) == set(names)


def test_times_of_earlier_versions_stay_and_damaged_ones_are_left_out(tmp_path: Path):
    run = RunDir(tmp_path)
    write_json(run.file("timings.json"), {"plan": {"seconds": 2.5, "finished": "then"}})
    keep_timing(run, "solve", 1.0, "now")
    keep_timing(run, "refine", 3.0, "now")
    damaged = run.file("timings") / "refine.json"
    damaged.write_text(damaged.read_text().replace("3.0", "4.0"))
    known = {"plan": 2.5, "solve": 1.0, "refine": 3.0}
    assert {name: entry["seconds"] for name, entry in read_timings(run).items()} == known
    run.file("timings.json").write_text("{")
    assert set(read_timings(run)) == {"solve"}
    for seconds in (None, "3.0"):
        write_json(damaged, {"seconds": seconds})
        assert set(read_timings(run)) == {"solve"}
    damaged.write_bytes((run.file("timings") / "solve.json").read_bytes())
    assert set(read_timings(run)) == {"solve"}, "a time under the name of another stage is none"


def test_times_of_another_plan_are_none_of_this_one(tmp_path: Path):
    run, other = (write_run(tmp_path / name) for name in ("run", "other"))
    plan = read_json(other.plan_path, "")
    write_artefact(other.plan_path, {**plan, "fingerprint": "another"})
    keep_timing(run, "solve", 1.0, "now")
    keep_timing(other, "solve", 5.0, "now")
    keep_timing(other, "refine", 6.0, "now")
    for name in ("timings.json", "timings/solve.json", "timings/refine.json"):
        shutil.copy(other.file(name), run.file(name))
    assert not read_timings(run)
    keep_timing(run, "reduce", 2.0, "now")
    assert stages(run) == set(read_timings(run)) == {"reduce"}
    assert {name: entry["seconds"] for name, entry in read_timings(other).items()} == {
        "solve": 5.0,
        "refine": 6.0,
    }
