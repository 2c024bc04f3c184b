"""A model that has changed since it was planned for is refused by every stage that loads it."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hpcmpq.calibrate.worker import make_worker
from hpcmpq.config import parse_config
from hpcmpq.errors import PlanMismatch
from hpcmpq.evaluate.engines.zero_shards import build
from hpcmpq.models.load import load_model
from hpcmpq.models.original_marks import check_same_outputs, original_marks
from hpcmpq.models.weight_digests import check_same_weights, weight_marks
from hpcmpq.plan import Plan
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.variants import open_variants
from hpcmpq.settings import CalibrationConfig, Config, ModelConfig
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def planned(model_directory, tmp_path) -> tuple[RunDir, Plan, Path]:
    """A planned run, and the file of its model's weights."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    values = {
        "model": {"path": str(model_directory("llama")), "dtype": "bfloat16"},
        "calibration": {"data": str(tmp_path / "text.txt"), "num_samples": 4, "sequence_length": 16},
        "formats": ["int4", "int8"],
        "quantizer": {"group_size": 8},
    }
    run = RunDir(tmp_path / "run")
    return run, prepare(parse_config(values), run, ()), model_directory("llama") / "model.safetensors"


def train(path: Path) -> None:
    """Change every weight a little."""
    tensors = {name: tensor * 1.01 for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("whole", [0, 2**26])
def test_every_way_of_loading_gives_the_same_marks(planned, monkeypatch, whole):
    run, plan, _ = planned
    monkeypatch.setattr("hpcmpq.models.weight_digests.WHOLE", whole)
    plan = prepare(plan.config, RunDir(run.path.with_name("another")), ())
    run = RunDir(run.path.with_name("another"))
    config = plan.config.model
    assert read_plan(run).weights == plan.weights
    assert len(plan.weights) == 21
    exact = load_model(dataclasses.replace(config, dtype="float32"))  # as low-precision methods load it
    assert weight_marks(exact, "bfloat16") == plan.weights
    empty, rows = build(config, (), 0, 1)
    assert weight_marks(empty, "bfloat16", rows) == plan.weights
    assert not weight_marks(empty, "bfloat16")
    make_worker(run)
    open_variants(run, plan)


def test_changed_weights_are_refused(planned):
    run, plan, path = planned
    train(path)
    for load in (lambda: make_worker(run), lambda: open_variants(run, plan)):
        with pytest.raises(
            PlanMismatch, match=r"other weights than the run was planned with \(\d+ of 21 differ"
        ):
            load()
    empty, rows = build(plan.config.model, (), 0, 1)
    with pytest.raises(PlanMismatch, match="restore the model"):
        check_same_weights(empty, plan, rows)


def test_one_changed_value_in_the_middle_of_a_small_model_is_found(planned):
    run, plan, path = planned
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] += 0.25
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(PlanMismatch, match=r"\(1 of 21 differ, first model.layers.1.mlp.up_proj.weight\)"):
        open_variants(run, plan)


def test_scalars_and_plans_without_marks():
    model = nn.Linear(3, 2)
    model.scale = nn.Parameter(torch.ones(()))
    assert weight_marks(model, "float32").keys() == {"weight", "bias", "scale"}
    plan = Plan(config=config_of("float32"), **dict.fromkeys(PLAIN))  # type: ignore[arg-type]
    check_same_weights(model, plan)


PLAIN = ("space", "units", "facts", "fingerprint", "import_paths", "fixed_bytes", "environment")


def config_of(dtype) -> Config:
    return Config(ModelConfig("m", dtype=dtype), CalibrationConfig(""))


def edit_json(path: Path, **values) -> None:
    config = path.with_name("config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


def stages(run: RunDir, plan: Plan) -> list[Callable[[], object]]:
    """What calibration, and then refinement, export and evaluation open first; and planning again."""
    return [
        lambda: make_worker(run),
        lambda: open_variants(run, plan),
        lambda: prepare(plan.config, run, ()),
    ]


def test_other_settings_are_refused_by_name(planned):
    run, plan, path = planned
    edit_json(path, hidden_act="relu")
    for stage in stages(run, plan):
        with pytest.raises(
            PlanMismatch, match="planned with hidden_act='silu' in the config.json of .* now it is 'relu'"
        ):
            stage()
    edit_json(
        path, hidden_act="silu", rope_theta=3.0, rope_parameters={"rope_type": "default", "rope_theta": 3.0}
    )
    for stage in stages(run, plan):
        with pytest.raises(PlanMismatch, match="rope_theta=10000"):
            stage()


def test_settings_that_reach_no_output_may_change(planned):
    run, plan, path = planned
    edit_json(path, initializer_range=0.5, use_cache=False, transformers_version="0.0", unknown_to_the_plan=1)
    for stage in stages(run, plan):
        stage()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_other_code_with_the_same_weights_is_refused_by_its_outputs(planned, monkeypatch, stream):
    from transformers.models.llama.modeling_llama import LlamaMLP

    run, plan, _ = planned
    if stream:
        run = RunDir(run.path.with_name("streamed"))
        plan = prepare(
            dataclasses.replace(plan.config, model=dataclasses.replace(plan.config.model, stream=True)),
            run,
            (),
        )
    before = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: before(self, x) + 3 * x)
    for stage in stages(run, plan):
        with pytest.raises(
            PlanMismatch, match="gives other outputs on the first calibration sample than when the run"
        ):
            stage()


def test_rounding_is_no_change(planned, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    run, plan, _ = planned
    before = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: (1 + 2**-8) * before(self, x))
    for stage in stages(run, plan):
        stage()


@pytest.mark.parametrize(("dtype", "change", "same"), [
    ("float32", 3e-5, True), ("float32", 3e-4, False), ("bfloat16", 2e-2, True), ("bfloat16", 0.2, False),
])  # fmt: skip
def test_outputs_are_compared_within_the_rounding_of_the_dtype(dtype, change, same):
    z_NTV = torch.randn(1, 40, 50, generator=torch.Generator().manual_seed(0))
    marks = original_marks(nn.Identity(), {}, z_NTV)
    values = {**dict.fromkeys(PLAIN), "environment": {}, "config": config_of(dtype)}
    plan = Plan(**values, original=json.loads(json.dumps(marks)))  # type: ignore[arg-type]
    other_NTV = z_NTV + change * torch.where(torch.arange(50) % 2 == 0, 1.0, -1.0)
    with nullcontext() if same else pytest.raises(PlanMismatch):
        check_same_outputs(plan, {}, other_NTV)


def test_one_token_whose_experts_flip_is_rounding_in_bfloat16_alone():
    z_NTV = torch.randn(1, 40, 50, generator=torch.Generator().manual_seed(0))
    other_NTV = z_NTV.clone()
    other_NTV[:, -1] += 1.0
    for dtype, same in (("bfloat16", True), ("float32", False)):
        values = {
            **dict.fromkeys(PLAIN),
            "environment": {},
            "config": config_of(dtype),
        }
        plan = Plan(**values, original=original_marks(nn.Identity(), {}, z_NTV))  # type: ignore[arg-type]
        with nullcontext() if same else pytest.raises(PlanMismatch):
            check_same_outputs(plan, {}, other_NTV)


def test_running_statistics_are_marked_and_what_is_computed_is_not():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.register_buffer("computed", torch.ones(2), persistent=False)
    marks = weight_marks(model, "float32")
    assert marks.keys() == {
        *("0.weight", "0.bias", "1.weight", "1.bias"), *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }  # fmt: skip
    plan = Plan(config=config_of("float32"), weights=marks, **dict.fromkeys(PLAIN))  # type: ignore[arg-type]
    model[1].running_var *= 2
    with pytest.raises(PlanMismatch, match=r"1 of 7 differ, first 1.running_var"):
        check_same_weights(model, plan)
