"""Whatever is damaged in a run directory: the command that the message names mends it, to the same bits."""

import errno
import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hpcmpq.executors.in_process import InProcess
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.calling import status_of
from tests.store.tiny_source import save_source

pytestmark = pytest.mark.slow

STAGES = ("plan", "calibrate", "reduce", "time", "solve")


@pytest.fixture(scope="module")
def run_once(tmp_path_factory) -> tuple[Path, Path]:
    """A config whose plan has codes and static ranges, and its solved run."""
    place = tmp_path_factory.mktemp("damaged")
    save_source(place, 60)
    values = {
        "model": {"path": "model"},
        "calibration": {"data": "text.txt", "num_samples": 4, "sequence_length": 16, "held_out": 2},
        "formats": ["int4", "w8a8", "bf16"],
        "quantizer": {"group_size": 8, "rounding": "gptq", "activations": "static"},
        "budgets": {"weight_bits": 5.0},
        "solver": {"time_limit_s": 2},
        "timing": {"rounds": 1},
    }
    (place / "config.yaml").write_text(yaml.safe_dump(values))
    for stage in STAGES:
        assert hpcmpq(stage, place / "run", place / "config.yaml") == 0
    return place / "config.yaml", place / "run"


def hpcmpq(stage: str, run: Path, config: Path) -> int:
    """Exit status of a stage in this process."""
    arguments = [config, "--run-dir", run] if stage == "plan" else [run]
    with pytest.MonkeyPatch.context() as patch:  # to spare the start of a worker
        patch.setattr("hpcmpq.cli.stages.open_executor", lambda *_: nullcontext(InProcess()))
        return status_of(stage, *arguments)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("plan.json", "plan"),
        ("plan.json", "solve"),
        ("rounded/*.h5", "calibrate"),
        ("rounding_samples.safetensors", "plan"),
        ("activations.h5", "plan"),
        ("samples.safetensors", "plan"),
        ("cost.json", "plan"),
        ("timings.json", "reduce"),
        ("time.json", "solve"),
        ("times/*.json", "time"),
        ("quadratic.h5", "solve"),
        ("solution.json", "status"),
        ("attempts/*.jsonl", "status"),
    ],
)
@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"[{}]\n"])
def test_the_command_that_the_message_names_mends_it(run_once, tmp_path, capfd, name, stage, damage):
    config, whole = run_once
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = sorted(run.glob(name))[0]
    path.write_bytes(damage(path.read_bytes()))
    capfd.readouterr()
    status, said = hpcmpq(stage, run, config), capfd.readouterr().err
    assert "Traceback" not in said
    if status:
        assert status == 2, said
        (sentence,) = [line for line in said.splitlines() if line.startswith("hpcmpq: ")]
        (command,) = re.findall(r"run `hpcmpq ([a-z]+)", sentence)
        assert hpcmpq(command, run, config) == 0
        assert hpcmpq(stage, run, config) == 0
    assert read_plan(RunDir(run)).units == read_plan(RunDir(whole)).units
    for kept in (whole / "activations.h5", whole / "quadratic.h5", *whole.glob("rounded/*.h5")):
        assert (run / kept.relative_to(whole)).read_bytes() == kept.read_bytes()
    samples = load_file(run / "samples.safetensors")
    for key, tensor in load_file(whole / "samples.safetensors").items():
        assert torch.equal(samples[key], tensor)


@pytest.mark.parametrize(
    ("edit", "status", "said"),
    [
        (lambda formats: dict.fromkeys(formats, "bf16"), 0, "solution.json was edited: its assignment"),
        (lambda formats: dict.fromkeys(formats, "int3"), 2, "none of its formats: int4, w8a8, bf16"),
        (lambda formats: dict(list(formats.items())[1:]), 2, "run `hpcmpq solve"),
    ],
)
def test_an_assignment_changed_by_hand_is_taken_with_a_notice(run_once, tmp_path, capfd, edit, status, said):
    config, whole = run_once
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    values = json.loads((run / "solution.json").read_text())
    assert values.pop("digest")
    values |= {"assignment": edit(values["assignment"]), "digest": "edited"}
    (run / "solution.json").write_text(json.dumps(values))
    capfd.readouterr()
    assert hpcmpq("export", run, config) == status
    assert said in capfd.readouterr().err
    if not status:
        exported = load_file(run / "checkpoint" / "model.safetensors")
        original = load_file(config.parent / "model" / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(exported[name], original[name].bfloat16().float())


def test_paths_with_brackets_are_no_markup(run_once, tmp_path, capfd):
    config, whole = run_once
    run = tmp_path / "a [/bold] [red] ü"
    shutil.copytree(whole, run)
    for stage in ("export", "report", "status"):
        assert hpcmpq(stage, run, config) == 0
    assert f"report in {run}/report.html" in capfd.readouterr().out
    assert status_of("compare", run, whole) == 0
    assert "[/bold]" in capfd.readouterr().out


@pytest.mark.parametrize("stage", ["calibrate", "refine", "time", "export", "evaluate"])
def test_a_model_that_has_changed_since_the_plan_is_refused(run_once, tmp_path, capfd, stage):
    config, whole = run_once
    run, model = tmp_path / "run", config.parent / "model" / "model.safetensors"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "shards")
    trained = {name: tensor * 1.01 for name, tensor in load_file(model).items()}
    before = model.read_bytes()
    try:
        save_file(trained, model, {"format": "pt"})
        capfd.readouterr()
        assert hpcmpq(stage, run, config) == 2
    finally:
        model.write_bytes(before)
    assert "model has other weights than the run was planned with" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "there is not enough memory; take a machine"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 80 bytes"),
            "not enough memory (Default",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/scratch/x"),
            "'/scratch/x'; make room or permission",
        ),
    ],
)
def test_lack_of_memory_or_room_is_said_without_a_traceback(
    run_once, tmp_path, capfd, monkeypatch, error, sentence
):
    config, whole = run_once

    def fails(run: RunDir) -> None:
        raise error

    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr("hpcmpq.calibrate.reduce.reduce", fails)
    capfd.readouterr()
    assert hpcmpq("reduce", tmp_path / "run", config) == 2
    said = capfd.readouterr().err
    assert sentence in said and "Traceback" not in said
