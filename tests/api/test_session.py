"""A session in Python with a model and texts in memory: every stage, again, elsewhere, and with other things."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hpcmpq
from hpcmpq.config import read_config
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.calling import Call

pytestmark = pytest.mark.slow

TEXTS = [f"{n} squared is {n * n} and cubed {n**3}, which is more." for n in range(60)]
FORMATS = ["int2", "int4", "int8"]
SETTINGS = {
    "calibration": {"held_out": 2},
    "evaluation": {"num_samples": 2},
    "solver": {"time_limit_s": 1},
    "refine": {"max_evaluations": 3, "link_points": 3},
}


@pytest.fixture
def model(tiny_model: Callable[[str], nn.Module]) -> nn.Module:
    return tiny_model("llama")


def create(model: object, run_dir: Path, **changes: object) -> hpcmpq.Run:
    given = {"data": TEXTS, "formats": FORMATS, "num_samples": 4, "sequence_length": 16, "settings": SETTINGS}
    return hpcmpq.Run.create(model, run_dir=run_dir, budgets={"weight_bits": 4}, **(given | changes))  # type: ignore[arg-type]


@pytest.fixture
def run(model: nn.Module, tmp_path: Path) -> hpcmpq.Run:
    made = create(model, tmp_path / "run")
    made.calibrate()
    return made


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Names whose tensors are equal."""
    return {name for name in first if torch.equal(first[name], second[name])}


def test_every_stage_gives_values_and_prints_nothing(
    model: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    model.train().requires_grad_(True)
    before, threads = state(model), torch.get_num_threads()
    run = create(model, tmp_path / "run")
    quadratic = run.calibrate()
    assert quadratic.linear_P.shape == (len(run.groups) * len(FORMATS),)
    solution = run.solve(weight_bits=4)
    assert solution.costs["weight_bits"] <= 4 and solution.bound is not None
    assert run.refine().measured_loss is not None
    assert run.evaluate()["kl"]["original"] == 0
    tightest = run.frontier(start=2, stop=4, step=1)[0]
    assert set(tightest.assignment.values()) == {"int2"}
    quantized = run.apply(tightest)
    searched = {name for names in run.groups["parameters"] for name in names}
    assert same(before, quantized.state_dict()) == before.keys() - searched
    for name in searched:
        for row in quantized.get_parameter(name):  # one scale for each: group_size is null
            assert len(row.unique()) <= 4
    exported = run.export(directory=tmp_path / "out")
    assert json.loads((exported / "assignment.json").read_text()) == run.solution.assignment
    assert run.report().read_text().startswith("<!")
    assert same(before, model.state_dict()) == before.keys()
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")


def test_the_same_again_is_the_same_run_and_anything_else_is_refused(run: hpcmpq.Run, model: nn.Module):
    weights = next((run.path / "original").glob("*.safetensors"))
    kept = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (weights, run.path / "data/calibration.jsonl")
    }
    shards = {path: path.stat().st_mtime_ns for path in (run.path / "shards").iterdir()}
    assert create(model, run.path, num_samples=4).status().num_done == run.status().num_units
    with pytest.raises(hpcmpq.PlanMismatch, match="other calibration data"):
        create(model, run.path, data=TEXTS[1:])
    with pytest.raises(hpcmpq.PlanMismatch, match="sequence_length=16"):
        create(model, run.path, sequence_length=24)
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(1.5)
    with pytest.raises(hpcmpq.PlanMismatch, match="another model"):
        create(model, run.path)
    assert kept == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in kept}
    run.calibrate()
    assert shards == {path: path.stat().st_mtime_ns for path in (run.path / "shards").iterdir()}


def test_the_directory_goes_elsewhere_and_the_command_line_goes_on_with_it(
    run: hpcmpq.Run, tmp_path: Path, call: Call
):
    fingerprint = read_plan(RunDir(run.path)).fingerprint
    shutil.move(run.path, tmp_path / "moved")
    moved = hpcmpq.open(tmp_path / "moved")
    assert moved.solve().budgets == {"weight_bits": 4}
    assert moved.evaluate()["num_samples"] == 2
    again = call("plan", moved.path / "config.yaml", "--run-dir", moved.path)
    assert again.status == 0, again.err
    assert read_plan(RunDir(moved.path)).fingerprint == fingerprint
    assert read_config(moved.path / "config.yaml").calibration.num_samples == 4


def test_a_module_that_transformers_cannot_save_stays_in_this_process(
    tiny_model: Callable[[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = tiny_model("cnn")
    run = create(model, tmp_path / "run", data=images, sequence_length=None)
    assert run.calibrate().num_samples == 4
    run.solve(weight_bits=3)
    assert run.apply()(images).shape == (24, 5)
    monkeypatch.setattr("hpcmpq.models.in_memory._given", {})
    with pytest.raises(hpcmpq.UserError, match=r"give it to hpcmpq.open\(RUN, model=...\)"):
        run.apply()
    assert hpcmpq.open(run.path, model=model).apply()(images).shape == (24, 5)


def test_inputs_are_rounded_whenever_the_applied_model_runs(
    tiny_model: Callable[[str], nn.Module], tmp_path: Path
):
    images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    formats, settings = ["w8a8", "int8"], SETTINGS | {"groups": {"include": ["*"]}}
    run = hpcmpq.Run.create(
        tiny_model("cnn"), images, run_dir=tmp_path / "run", formats=formats, budgets={"weight_bits": 8},
        num_samples=2, settings=settings,
    )  # fmt: skip
    run.calibrate()
    solution = run.solve()
    for name in formats:
        applied = run.apply(replace(solution, assignment=dict.fromkeys(run.groups.index, name)))
        inputs: list[torch.Tensor] = []
        applied.get_submodule("5").register_forward_hook(
            lambda _m, args, _z, inputs=inputs: inputs.append(args[0])
        )
        applied(images)
        steps = (
            127 * inputs[0] / inputs[0].abs().amax(1, keepdim=True)
        )  # of symmetric 8-bit integers for each sample
        assert torch.allclose(steps, steps.round(), atol=1e-3) == (name == "w8a8")


def test_one_call_without_data(model: nn.Module):
    quantized = hpcmpq.quantize(model, bits=2, formats=["int2", "int8"], num_samples=2, sequence_length=16)
    weight = quantized.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert all(len(row.unique()) <= 4 for row in weight)
    assert quantized(torch.zeros(1, 4, dtype=torch.int64)).logits.shape == (1, 4, 256)


def test_what_cannot_be_is_said(model: nn.Module, tmp_path: Path):
    with pytest.raises(hpcmpq.UserError, match="model is a int"):
        create(3, tmp_path / "run")
    with pytest.raises(hpcmpq.UserError, match="data is missing"):
        create(nn.Linear(2, 2), tmp_path / "run", data=None)
    with pytest.raises(hpcmpq.UserError, match="did you mean 'quantizer'"):
        create(model, tmp_path / "run", settings={"quantiser": {}})
    with pytest.raises(hpcmpq.Infeasible, match="smallest reachable"):
        hpcmpq.Run.create(model, TEXTS, run_dir=tmp_path / "run", budgets={"weight_bits": 1}, num_samples=4)
    with pytest.raises(hpcmpq.UserError, match="plan.json is missing"):
        hpcmpq.open(tmp_path / "nothing")
