"""`hpcmpq time` and `hpcmpq solve --maximize` as typed, on a run calibrated with first_order."""

import json
from pathlib import Path

import pytest
import yaml

from tests.executors.launch import ROOT, hpcmpq


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    values = yaml.safe_load((ROOT / "configs" / "speed.yaml").read_text())
    values["model"] = {"path": str(ROOT / "configs" / "quickstart_model")}
    values["formats"] = ["bf16", "fp32"]
    values["calibration"] |= {"num_samples": 4, "held_out": 0, "sequence_length": 32}
    values["timing"] = {"rounds": 2, "threads": 1}
    del values["evaluation"]
    config = tmp_path_factory.mktemp("timed") / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    run = config.with_name("run")
    for command in (["plan", config, "--run-dir", run], ["calibrate", run], ["reduce", run]):
        ended = hpcmpq(*command)
        assert ended.returncode == 0, ended.stderr
    return run


def test_a_limit_on_time_asks_for_times_first_and_then_both_programs_use_them(calibrated: Path):
    early = hpcmpq("solve", calibrated, "--budget", "latency_s=1")
    assert early.returncode == 2
    assert "run `hpcmpq time RUN` first" in early.stderr
    timed = hpcmpq("time", calibrated)
    assert timed.returncode == 0, timed.stderr
    assert (calibrated / "time.json").stat().st_size > 0
    none = hpcmpq("solve", calibrated, "--maximize", "mac_gain", "--max-loss-mse", "0")
    assert none.returncode == 0, none.stderr
    assert set(json.loads((calibrated / "solution.json").read_text())["assignment"].values()) == {"fp32"}
    full = hpcmpq("solve", calibrated, "--maximize", "mac_gain", "--max-loss-mse", "1")
    assert full.returncode == 0, full.stderr
    assert set(json.loads((calibrated / "solution.json").read_text())["assignment"].values()) == {"bf16"}
    fastest = hpcmpq("solve", calibrated, "--maximize", "time_gain", "--max-loss-mse", "1")
    assert fastest.returncode == 0, fastest.stderr
    solution = json.loads((calibrated / "solution.json").read_text())
    within = hpcmpq("solve", calibrated, "--budget", f"latency_s={solution['costs']['latency_s'] * 1.01}")
    assert within.returncode == 0, within.stderr
    beyond = hpcmpq("solve", calibrated, "--budget", f"latency_s={solution['costs']['latency_s'] * 0.5}")
    assert beyond.returncode == 3, beyond.stderr


def test_wrong_gains_and_limits_are_named(calibrated: Path):
    assert "need --maximize" in hpcmpq("solve", calibrated, "--max-loss-mse", "0.1").stderr
    wrong = hpcmpq("solve", calibrated, "--maximize", "speed", "--max-loss-mse", "0.1")
    assert wrong.returncode == 2
    assert "time_gain" in wrong.stderr
