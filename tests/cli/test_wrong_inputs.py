"""Every wrong input gets one clear sentence and the documented exit status, and loses nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.calling import Call
from tests.executors.tiny_model import write_config
from tests.synthetic_run import write_run

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(call: Call) -> Command:
    """Function that runs the command line in this process; returns exit status and standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        ended = call(*arguments)
        return ended.status, ended.err

    return run


@pytest.fixture
def config(model_directory, tmp_path) -> Callable[..., Path]:
    """Function that writes a small valid config with changes, `section__key=value`."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)

    def write(**changes: object) -> Path:
        values = {
            "model": {"path": str(model_directory("llama"))},
            "calibration": {
                "data": str(tmp_path / "text.txt"),
                "num_samples": 8,
                "sequence_length": 16,
                "held_out": 4,
                "samples_per_unit": 4,
            },
            "formats": ["int2", "int4"],
            "quantizer": {"group_size": 8},
            "budgets": {"weight_bits": 3.0},
            "solver": {"time_limit_s": 2},
        }
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                values.setdefault(section, {})[key] = value
            else:
                values[section] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def poison(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__path": "/nowhere/model"}, "/nowhere/model"),
        ({"calibraton": {}}, "did you mean 'calibration'?"),
        ({"calibration__nun_samples": 3}, "did you mean 'calibration.num_samples'?"),
        ({"formats": ["int9"]}, "unknown format 'int9'"),
        ({"sensitivity": "guess"}, "unknown sensitivity 'guess'"),
        (
            {"sensitivity": {"method": "hessian", "products": "bfloat16"}},
            "sensitivity.products is for secant",
        ),
        ({"calibration__data": "missing.txt"}, "missing.txt"),
        ({"calibration__sequence_length": 60_000}, "sequence_length"),
        ({"calibration__num_samples": 10_000}, "calibration.num_samples"),
        ({"groups__include": ["*.nothing"]}, "'*.nothing'"),
        ({"groups__tie": [["q_proj", "x_proj"]]}, "x_proj"),
        ({"model": {"factory": "no.such:function"}}, "no.such"),
        ({"budgets": {"weight_bit": 3}}, "unknown budget 'weight_bit'"),
        ({"solver__name": "quadratc"}, "unknown solver 'quadratc'"),
        ({"solver__fixed": {"*.nothing": "int4"}}, "'*.nothing' matches no group"),
        ({"evaluation__tasks": [{"name": "quiz", "type": "next_word", "path": "no.jsonl"}]}, "no.jsonl"),
        (
            {"evaluation__tasks": [{"name": "quiz", "type": "multiple_choice", "path": "text.txt"}]},
            "line 1 is not JSON",
        ),
        ({"evaluation__tasks": [{"name": "quiz", "type": "harness", "path": "nowhere"}]}, "no directory"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_measured(command, config, tmp_path, changes, message):
    status, error = command("plan", config(**changes), "--run-dir", tmp_path / "run")
    assert (status, error.count("hpcmpq: ")) == (2, 1), error
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budgets": {"weight_bits": 1.5}},
            "weight_bits = 1.5 bits per weight is below the smallest reachable 2",
        ),
        ({"solver__min_bits": {"*": 4}}, "weight_bits = 3 bits per weight is below the smallest reachable 4"),
    ],
)
def test_budgets_out_of_reach_are_refused_before_anything_is_measured(
    command, config, tmp_path, changes, message
):
    status, error = command("plan", config(**changes), "--run-dir", tmp_path / "run")
    assert status == 3
    assert message in error
    assert not (tmp_path / "run" / "plan.json").exists()


def test_budgets_on_times_may_be_named_before_times_are_measured(command, config, tmp_path):
    path = config(budgets={"latency_s": 1e-9, "weight_bits": 3.0})
    assert command("plan", path, "--run-dir", tmp_path / "run")[0] == 0


def test_a_model_that_the_target_cannot_describe_is_refused(command, config, model_directory, tmp_path):
    path = config(model__path=str(model_directory("gpt2")), target="llama_cpp", quantizer={"group_size": 32})
    status, error = command("plan", path, "--run-dir", tmp_path / "run")
    assert status == 2
    assert "not 'gpt2'" in error


@pytest.mark.parametrize(("stage", "option"), [("export", "--format"), ("evaluate", "--engine")])
def test_an_empty_name_is_no_default(command, tmp_path, stage, option):
    """As of a variable that a script did not set; `hpcmpq evaluate` would measure with the config's engine."""
    run = write_run(tmp_path / "run")
    status, error = command(stage, run.path, option, "")
    assert status == 2
    assert "unknown e" in error and "''; known: " in error


def test_a_config_without_budgets_is_questioned(command, config, tmp_path):
    status, error = command("plan", config(budgets={}), "--run-dir", tmp_path / "run")
    assert status == 0
    assert "budgets is empty" in " ".join(error.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"mod\xe8le: x", "not UTF-8"), (b"[" * 5000, "nested too deep"), (b"\0", "not valid YAML")],
)
def test_files_that_are_no_config(command, tmp_path, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    status, error = command("plan", tmp_path / "config.yaml", "--run-dir", tmp_path / "run")
    assert status == 2
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve", "--time-limit", "0"),
        ("solve", "--time-limit", "nan"),
        ("solve", "--time-limit", "inf"),
        ("frontier", "--time-limit", "-1"),
        ("frontier", "--to", "inf"),
        ("frontier", "--time-limit", "inf"),
        ("frontier", "--step", "1e-9"),
        ("frontier", "--step", "inf"),
        ("frontier", "--budget", "weight_bits=3"),
        ("calibrate", "--at-most", "-1"),
    ],
)
def test_numbers_on_the_command_line_that_make_no_sense(command, tmp_path, arguments):
    write_run(tmp_path / "run")
    stage, *options = arguments
    status, error = command(stage, tmp_path / "run", *options)
    assert status == 2
    assert "Traceback" not in error and options[0] in error


def test_output_on_a_full_disk(tmp_path):
    write_run(tmp_path / "run")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "hpcmpq", "status", tmp_path / "run"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("hpcmpq: ") and "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_nan_weights_are_named(command, config, tmp_path):
    path = config()
    poison(Path(yaml.safe_load(path.read_text())["model"]["path"]))
    status, error = command("plan", path, "--run-dir", tmp_path / "run")
    assert status == 2
    assert "model.layers.1.mlp.up_proj.weight" in error


def test_an_empty_calibration_file(command, config, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    status, error = command("plan", config(calibration__data="empty.txt"), "--run-dir", tmp_path / "run")
    assert status == 2
    assert "empty" in error


def test_text_shorter_than_a_sequence(command, config, tmp_path):
    (tmp_path / "short.txt").write_text("short")
    status, error = command("plan", config(calibration__data="short.txt"), "--run-dir", tmp_path / "run")
    assert status == 2
    assert "sequence_length" in error


def test_a_run_directory_that_cannot_be_written(command, config, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    status, error = command("plan", config(), "--run-dir", tmp_path / "file" / "run")
    assert status == 2
    assert "cannot write" in error


@pytest.mark.parametrize("words", ["plan CONFIG --run-dir", "status", "evaluate", "report", "compare"])
def test_a_file_in_place_of_a_run_directory(words, command, config, tmp_path):
    (tmp_path / "file").write_text("kept")
    given = [config() if word == "CONFIG" else word for word in words.split()]
    rest = [tmp_path / "other"] if words == "compare" else []
    status, error = command(*given, tmp_path / "file", *rest)
    assert status == 2
    assert "file is a file; give a run directory" in error
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_directory_of_another_config(command, config, tmp_path):
    run = tmp_path / "run"
    assert command("plan", config(), "--run-dir", run)[0] == 0
    before = (run / "plan.json").read_bytes()
    status, error = command("plan", config(calibration__num_samples=12), "--run-dir", run)
    assert status == 2
    assert "calibration.num_samples=8, the config says 12" in error
    assert (run / "plan.json").read_bytes() == before
    assert command("plan", config(budgets={"weight_bits": 2.5}), "--run-dir", run)[0] == 0


def test_stages_out_of_order_name_the_one_to_run_first(command, config, tmp_path):
    run = tmp_path / "run"
    assert "hpcmpq plan" in command("calibrate", run)[1]
    assert command("plan", config(), "--run-dir", run)[0] == 0
    status, error = command("reduce", run)
    assert status == 2
    assert "2 of 2 units are missing" in error
    for stage, needed in (("solve", "reduce"), ("evaluate", "solve"), ("export", "solve")):
        status, error = command(stage, run)
        assert status == 2
        assert f"hpcmpq {needed}" in error


@pytest.mark.slow
def test_damage_and_budgets_after_calibration(command, tmp_path):
    run = tmp_path / "run"
    assert command("plan", write_config(tmp_path / "config.yaml"), "--run-dir", run)[0] == 0
    assert command("calibrate", run, "--workers", 1)[0] == 0
    assert command("reduce", run)[0] == 0
    whole = RunDir(run).quadratic_path.read_bytes()
    shard = RunDir(run).shard_path(read_plan(RunDir(run)).units[1].id)
    shard.write_bytes(shard.read_bytes()[:-100])
    status, error = command("reduce", run)
    assert status == 2
    assert "damaged" in error
    assert "hpcmpq calibrate" in error
    status, error = command("calibrate", run, "--workers", 1)
    assert status == 0
    assert "damaged" in error  # reported, then recomputed
    assert command("reduce", run)[0] == 0
    assert RunDir(run).quadratic_path.read_bytes() == whole

    assert command("solve", run)[0] == 0
    solved = RunDir(run).solution_path.read_bytes()
    status, error = command("solve", run, "--budget", "weight_bits=1.5")
    assert status == 3
    assert "2" in error.partition("budgets")[2]
    status, error = command("solve", run, "--budget", "wait_bits=3")
    assert status == 2
    assert "known: weight_bits" in error
    assert RunDir(run).solution_path.read_bytes() == solved
    assert json.loads(solved)["costs"]["weight_bits"] <= 3.0
