"""`hpcmpq status --watch` looks again until every stage is done, and reads no shard twice."""

import json
import os
import socket
from pathlib import Path

import pytest

from hpcmpq.batch import status as status_module
from hpcmpq.batch.memory import memory_here
from hpcmpq.batch.stages_done import Stage
from hpcmpq.batch.status import busy_workers, throughput
from hpcmpq.store import shards
from hpcmpq.store.attempts import Attempt
from hpcmpq.store.run_dir import RunDir
from tests.calling import Call
from tests.executors.tiny_run import plan_run


def test_a_line_of_json_each_time(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = plan_run(tmp_path / "run")
    read: list[str] = []
    monkeypatch.setattr(shards, "read_shard_of", lambda plan, run, unit: read.append(unit.id))
    looks = iter([3, 5, 9])

    def measure(_seconds: float) -> None:
        """What others do between two looks."""
        for unit in shards_of(run)[: next(looks)]:
            run.shards_path.mkdir(exist_ok=True)
            run.shard_path(unit).touch()

    monkeypatch.setattr("hpcmpq.cli.slurm.time.sleep", measure)
    done = Stage("report", True, 1.0)
    monkeypatch.setattr(
        status_module,
        "stages_of",
        lambda run, plan, calibrated, broken: (Stage("calibrate", calibrated, None), done),
    )
    ended = call("status", run.path, "--watch", "--json", "--quiet")
    assert ended.status == 0, ended.err
    assert [json.loads(line)["num_done"] for line in ended.out.splitlines()] == [0, 3, 5, 9]
    assert sorted(read) == sorted(shards_of(run))
    assert call("status", run.path, "--watch").out.count("9 of 9 units") == 1


def shards_of(run: RunDir) -> list[str]:
    return [unit["id"] for unit in json.loads(run.plan_path.read_text())["units"]]


def test_a_pace_that_is_none_is_refused(call: Call, tmp_path: Path):
    run = plan_run(tmp_path / "run")
    for pace in ("0", "inf", "nan"):
        assert "--every must be" in call("status", run.path, "--watch", "--every", pace).err


def test_busy_workers_are_units_at_once():
    # Two workers from 0 to 4 and one until 6: 2 + 2 + 2 + 2 + 2 seconds of work in 6.
    attempts = [
        Attempt(str(n), 2.0, finished, None, True) for n, finished in enumerate((2.0, 2.0, 4.0, 4.0, 6.0))
    ]
    assert busy_workers(attempts) == pytest.approx(10 / 6)
    assert throughput(attempts) == pytest.approx(5 / 6)
    assert busy_workers([]) is throughput([]) is None


def test_memory_is_that_of_the_processes_that_wrote_attempts_and_of_their_children(tmp_path: Path):
    run, proc, tick = RunDir(tmp_path / "run"), tmp_path / "proc", os.sysconf("SC_CLK_TCK")
    proc.mkdir()
    (proc / "stat").write_text("cpu 1 2\nbtime 1000\nprocesses 5\n")
    for pid, parent, began_s in ((10, 1, 5), (11, 10, 6), (12, 11, 7), (20, 1, 5), (30, 1, 500)):
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} {'0 ' * 17}{began_s * tick} 0")
        (proc / str(pid) / "statm").write_text(f"999 {pid} 3")
    assert memory_here(run, proc) is None
    run.attempts_path.mkdir(parents=True)
    host = socket.gethostname()
    for name in (
        f"{host}-10",
        "elsewhere-20",
        f"{host}-99",
        f"{host}-30",
        f"{host}-10 (copy)",
    ):  # 30 is another one's number by now
        (run.attempts_path / f"1006.250-{name}.jsonl").touch()
    assert memory_here(run, proc) == (10 + 11 + 12) * os.sysconf("SC_PAGE_SIZE")
