"""Whatever is damaged in a run directory: the command that the message names mends it, to the same bits."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hpcmpq.cli import main
from hpcmpq.models.load import quiet_transformers
from hpcmpq.store import RunDir, read_plan
from tests.conftest import llama

STAGES = ("plan", "calibrate", "reduce", "time", "solve")


@pytest.fixture(scope="module")
def run_once(tmp_path_factory) -> tuple[Path, Path]:
    """A config whose plan has codes and static ranges, and its solved run."""
    place = tmp_path_factory.mktemp("damaged")
    torch.manual_seed(0)
    with quiet_transformers():
        llama().save_pretrained(place / "model")
    (place / "text.txt").write_text("".join(f"{n} bottles of ink on shelf {n % 7}. " for n in range(60)))
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
    arguments += ["--workers", 1] if stage == "calibrate" else []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["hpcmpq", stage, *map(str, arguments)])
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("plan.json", "plan"),
        ("plan.json", "solve"),
        ("rounded/*.h5", "plan"),
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
