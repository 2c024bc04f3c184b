"""`hpcmpq time` and `hpcmpq solve --maximize` as typed, on a run calibrated with first_order."""

import json
from pathlib import Path

import pytest
import yaml

from tests.calling import ROOT, Call, status_of
from tests.executors.tiny_model import write_config

pytestmark = pytest.mark.slow


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
    for command in (["plan", config, "--run-dir", run], ["calibrate", run, "--workers", 1], ["reduce", run]):
        assert status_of(*command) == 0
    return run


def test_a_limit_on_time_asks_for_times_first_and_then_both_programs_use_them(call: Call, calibrated: Path):
    early = call("solve", calibrated, "--budget", "latency_s=1")
    assert early.status == 2
    assert "run `hpcmpq time RUN` first" in early.err
    timed = call("time", calibrated)
    assert timed.status == 0, timed.err
    assert (calibrated / "time.json").stat().st_size > 0
    none = call("solve", calibrated, "--maximize", "mac_gain", "--max-loss-mse", "0")
    assert none.status == 0, none.err
    assert set(json.loads((calibrated / "solution.json").read_text())["assignment"].values()) == {"fp32"}
    full = call("solve", calibrated, "--maximize", "mac_gain", "--max-loss-mse", "1")
    assert full.status == 0, full.err
    assert set(json.loads((calibrated / "solution.json").read_text())["assignment"].values()) == {"bf16"}
    fastest = call("solve", calibrated, "--maximize", "time_gain", "--max-loss-mse", "1")
    assert fastest.status == 0, fastest.err
    solution = json.loads((calibrated / "solution.json").read_text())
    within = call("solve", calibrated, "--budget", f"latency_s={solution['costs']['latency_s'] * 1.01}")
    assert within.status == 0, within.err
    beyond = call("solve", calibrated, "--budget", f"latency_s={solution['costs']['latency_s'] * 0.5}")
    assert beyond.status == 3, beyond.err


def test_wrong_gains_and_limits_are_named(call: Call, calibrated: Path):
    assert "need --maximize" in call("solve", calibrated, "--max-loss-mse", "0.1").err
    wrong = call("solve", calibrated, "--maximize", "speed", "--max-loss-mse", "0.1")
    assert wrong.status == 2
    assert "time_gain" in wrong.err


def test_a_whole_run_within_a_time_measures_times_before_all_else(call: Call, tmp_path: Path):
    text = write_config(tmp_path / "config.yaml").read_text()
    values = yaml.safe_load(text.replace("[int2, int4]", "[int2, bf16]"))  # one that has kernels
    values |= {"budgets": {"latency_s": 1e-9}, "timing": {"rounds": 2}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    words = ("run", tmp_path / "config.yaml", "--run-dir", tmp_path / "run", "--workers", 1)
    for _ in range(2):  # the second time times are there
        ended = call(*words)
        assert ended.status == 3, ended.err  # no assignment is as fast
        assert not list((tmp_path / "run").glob("shards/*"))
    values["budgets"] = {"latency_s": 100.0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    before = (tmp_path / "run" / "time.json").read_bytes()
    ended = call(*words)
    assert ended.status == 0, ended.err
    assert "latency_s" in json.loads((tmp_path / "run" / "solution.json").read_text())["costs"]
    assert (tmp_path / "run" / "time.json").read_bytes() == before
