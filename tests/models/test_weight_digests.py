"""A model that has changed since it was planned for is refused by every stage that loads it."""

import dataclasses
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
from hpcmpq.models.weight_digests import check_same_weights, weight_marks
from hpcmpq.plan import Plan
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.variants import open_variants
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir


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
    plan = prepare(parse_config(plan.config), RunDir(run.path.with_name("another")), ())
    run = RunDir(run.path.with_name("another"))
    config = parse_config(plan.config).model
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
    empty, rows = build(parse_config(plan.config).model, (), 0, 1)
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
    plan = Plan(config={"model": {"dtype": "float32"}}, **dict.fromkeys(PLAIN))  # type: ignore[arg-type]
    check_same_weights(model, plan)


PLAIN = ("space", "units", "facts", "fingerprint", "import_paths", "fixed_bytes", "environment")
