"""Jobs leave the nodes on which units fail: batch scripts with a Slurm of a few lines, status and submit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcmpq.batch.status import read_status
from hpcmpq.cli import app
from hpcmpq.plan import UnitOutcome, plan_to_json
from hpcmpq.slurm.excluded import nodes_to_exclude
from hpcmpq.store.attempts import recording
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import MEASURING, RunDir
from tests.executors.tiny_model import write_config
from tests.synthetic_run import synthetic_plan

ROOT = Path(__file__).resolve().parents[2]

SCONTROL = """#!/bin/bash
echo "$*" >>"$CALLS"
case "$1 $2" in
"show job") echo "JobId=7 JobState=RUNNING ExcNodeList=$EXCLUDED Requeue=1" ;;
"show hostnames") echo n1; echo n2 ;;
"update "*) exit "$REFUSED" ;;
esac
"""


@pytest.fixture
def failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A planned run, one unit of which failed twice on n1 while n2 did another, in a Slurm job."""
    run, (unit, other, *_) = RunDir(tmp_path / "run"), synthetic_plan().units
    write_json(run.plan_path, plan_to_json(synthetic_plan()))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with recording(run, "n1") as record:
        for _ in range(2):
            record(UnitOutcome(unit, 0.0, "RuntimeError: CUDA error", node="n1"))
        record(UnitOutcome(other, 1.0, node="n2"))
    return run


@pytest.mark.parametrize("measuring", MEASURING)
def test_units_of_every_kind_speak_against_a_node(
    measuring: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    plan = synthetic_plan()
    quantizer, sensitivity = (
        replace(plan.config.quantizer, rounding="gptq"),
        replace(plan.config.sensitivity, screen=True),
    )
    run = RunDir(tmp_path / "run")
    planned = replace(plan, config=replace(plan.config, quantizer=quantizer, sensitivity=sensitivity))
    write_json(run.plan_path, plan_to_json(planned))
    bad, well, *_ = plan.units
    with recording(replace(run, measuring=measuring), "n1") as record:
        for _ in range(2):
            record(UnitOutcome(bad, 0.0, "RuntimeError: CUDA error", node="n1"))
        record(UnitOutcome(well, 1.0, node="n2"))
    assert nodes_to_exclude(run) == ["n1"]
    state = read_status(run)
    name = str(bad) if measuring == "calibrate" else f"{bad.id} of {measuring}"
    assert state.failed == {name: "RuntimeError: CUDA error"} and state.bad_nodes == {"n1": 1}


def test_a_job_goes_on_nowhere_else_where_its_node_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run, unit = RunDir(tmp_path / "run"), synthetic_plan().units[0]
    with recording(run, "n1") as record:
        for _ in range(3):
            record(UnitOutcome(unit, 0.0, "RuntimeError: CUDA error", node="n1"))
    status, said, asked = in_a_job("run_resumable bash -c 'exit 2'", run, tmp_path)
    assert status == 2 and "requeue" not in asked, said


def in_a_job(
    code: str, run: RunDir, folder: Path, excluded: str = "(null)", refused: str = "0"
) -> tuple[int, str, str]:
    """(exit status, what it said, what scontrol was asked) of shell code after env.sh, in a job on n1 and n2."""
    (folder / "scontrol").write_text(SCONTROL)
    (folder / "scontrol").chmod(0o755)
    (folder / "calls").touch()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'run={run.path}; . slurm/env.sh; prepare_node; {code}'],
        cwd=ROOT,
        env={
            **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "CALLS": f"{folder}/calls",
            "EXCLUDED": excluded, "REFUSED": refused, "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
            "HPCMPQ_PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr, (folder / "calls").read_text()


def test_a_job_whose_units_fail_on_its_node_goes_on_without_it(failed: RunDir, tmp_path: Path):
    status, said, asked = in_a_job("run_resumable bash -c 'exit 2'", failed, tmp_path, excluded="n9")
    assert status == 75, said
    assert "units fail on n1; job 7 is back in the queue, without n9,n1" in said
    assert asked.splitlines()[-2:] == ["requeue 7", "update JobId=7 ExcNodeList=n9,n1"]


def test_a_site_that_lets_no_job_exclude_nodes_requeues_it_all_the_same(failed: RunDir, tmp_path: Path):
    status, said, asked = in_a_job("requeue", failed, tmp_path, refused="1")
    assert status == 75 and "update JobId=7 ExcNodeList=n1" in asked
    assert "time is nearly over; job 7 is back in the queue\n" in said


@pytest.mark.parametrize(
    ("array", "named"),
    [
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3"),  # the number of the whole array
        ({"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}, "7"),
    ],
)
def test_a_task_of_an_array_asks_for_itself_alone(
    array: dict[str, str], named: str, failed: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in array.items():
        monkeypatch.setenv(name, value)
    status, said, asked = in_a_job("requeue", failed, tmp_path)
    assert status == 75 and f"job {named} is back in the queue, without n1" in said
    told = ["show job {} --oneliner", "requeue {}", "update JobId={} ExcNodeList=n1"]
    assert asked.splitlines() == [line.format(named) for line in told]


def test_other_failures_end_the_job_as_before(failed: RunDir, tmp_path: Path):
    with recording(failed, "n2") as record:  # the unit's own fault, then
        for _ in range(2):
            record(UnitOutcome(synthetic_plan().units[0], 0.0, "RuntimeError: CUDA error", node="n2"))
    status, said, asked = in_a_job("run_resumable bash -c 'exit 2'", failed, tmp_path)
    assert status == 2 and "requeue" not in asked, said


def test_status_names_the_node_and_submit_leaves_it_out(failed: RunDir, tmp_path: Path):
    assert nodes_to_exclude(failed) == ["n1"]
    shown = CliRunner().invoke(app, ["status", str(failed.path)]).stdout
    assert "node n1: 1 unit failed twice there and on no other node" in shown
    config = write_config(tmp_path / "config.yaml")
    words = ["submit", str(config), "--run-dir", str(failed.path), "--executor", "array", "--dry-run"]
    assert "--exclude=n1" in CliRunner().invoke(app, words).stdout
    own = CliRunner().invoke(app, [*words, "--slurm", "exclude=n5"]).stdout
    assert "--exclude=n5" in own and "n1" not in own
    none = CliRunner().invoke(app, [*words, "--slurm", "exclude="]).stdout
    assert "submit finish" in none and "--exclude" not in none
