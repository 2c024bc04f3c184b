"""A run with formats that round activations, from plan to checkpoint: the same ranges and bits wherever it runs."""

import json

import numpy as np
import pytest
import torch

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.config import parse_config
from hpcmpq.errors import CorruptShard, PlanMismatch, UserError
from hpcmpq.evaluate import evaluate
from hpcmpq.export import export
from hpcmpq.models.load import forward
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.activations import read_maxima
from hpcmpq.quantized.variants import open_variants
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import read_shard
from tests.export.planned import mixtral, plan_run

pytestmark = pytest.mark.slow


def config_of(**changes):
    values = {
        "model": {"path": "configs/quickstart_model"},
        "calibration": {
            "data": "hpcmpq.examples.topics:calibration_text", "num_samples": 4, "sequence_length": 16, "held_out": 2,
            "samples_per_unit": 2, "samples_per_pass": 2,
        },
        "groups": {"include": ["*.0.self_attn.*"], "attention_products": True},
        "formats": ["w8a8", "fp8_e4m3", "bf16"],
        "quantizer": {"activations": "static", "range": "absmax"},
        "sensitivity": "first_order",
        "evaluation": {"data": "hpcmpq.examples.topics:evaluation_text", "num_samples": 2},
    }  # fmt: skip
    return parse_config({**values, **changes})


def calibrated(run: RunDir, config):
    plan = prepare(config, run, ())
    work = make_worker(run)
    for unit in plan.units:
        work(unit)
    return plan


def test_a_run_with_static_ranges_and_products(tmp_path):
    run = RunDir(tmp_path / "run")
    plan = calibrated(run, config_of())
    groups = plan.space.groups
    assert (
        sum(bool(group.products) for group in groups) == 8
    )  # all four blocks' attention, one block's weights
    ranges = run.file("activations.h5").read_bytes()
    assert prepare(config_of(), run, ()) == plan
    assert run.file("activations.h5").read_bytes() == ranges
    quadratic = reduce(run).model
    assert quadratic.task_loss_mean_square is not None
    assert (quadratic.linear_P > 0).all()
    assert not quadratic.quad_PP.any()
    bops = sum(group.macs for group in groups) * 8 * 8 * 1.5
    solution = solve(run, {"bops": bops}, settings_of(plan, time_limit_s=5.0))
    assert len(set(solution["assignment"].values())) > 1
    evaluation = evaluate(run)
    assert 0 < evaluation["kl"]["quantized"] < 0.1
    with pytest.raises(UserError, match="compressed_tensors holds no formats of attention products"):
        export(run, "compressed_tensors")
    line = export(run, "fake_quantized")
    assert "weights only, the inputs of" in line
    said = json.loads((run.checkpoint_path / "activations.json").read_text())
    maxima = read_maxima(run, plan.fingerprint)
    assert maxima is not None
    place = "model.layers.0.self_attn.query_key"
    assert said[place]["range"] == "static"
    assert said[place]["maxima"] == list(maxima[place])
    assert len(said) == len(groups)
    assert "hpcmpq" not in (run.checkpoint_path / "config.json").read_text()


@pytest.mark.parametrize("method", ["first_order", "secant"])
def test_another_worker_measures_the_same_bits(tmp_path, method):
    """Another directory, another order of units."""
    config = config_of(sensitivity={"method": method, "groups_per_unit": 5})
    first, second = RunDir(tmp_path / "a"), RunDir(tmp_path / "b")
    plan = calibrated(first, config)
    again = prepare(config, second, ())
    assert again.units == plan.units
    work = make_worker(second)
    for unit in reversed(again.units):
        work(unit)
    for unit in plan.units:
        ours, theirs = (read_shard(run.shard_path(unit.id)).arrays for run in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_what_changes_a_number_is_a_fact(tmp_path):
    run = RunDir(tmp_path / "run")
    plan = prepare(config_of(), run, ())
    assert plan.facts["quantizer.activations"] == "static"
    assert plan.facts["activations.fp8_e4m3"] == "fp8_e4m3"
    with pytest.raises(PlanMismatch, match="activations"):
        prepare(config_of(quantizer={"activations": "dynamic", "range": "absmax"}), run, ())
    weights_alone = prepare(config_of(formats=["int4"], groups={}), RunDir(tmp_path / "other"), ())
    assert not any("activations" in name or "attention_products" in name for name in weights_alone.facts)
    assert not run.path.parent.joinpath("other/activations.h5").exists()


def test_a_damaged_file_of_ranges_is_not_used(tmp_path):
    run = RunDir(tmp_path / "run")
    plan = prepare(config_of(), run, ())
    path = run.file("activations.h5")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CorruptShard, match="hpcmpq plan"):
        open_variants(run, plan)
    path.unlink()
    variants = open_variants(run, plan)
    with pytest.raises(UserError, match="plan the run again"):
        _apply(variants, "w8a8")


@torch.no_grad()
def _apply(variants, name):
    with variants.assigned({group.name: name for group in variants.space.groups}):
        return forward(variants.model, {"input_ids": torch.zeros(1, 4, dtype=torch.long)})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"formats": ["int4", "int8"]}, "attention_products needs a format that rounds activations"),
        ({"sensitivity": "trace"}, "trace looks at weights alone"),
    ],
)
def test_what_cannot_be_measured_is_refused_when_planning(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(config_of(**changes), RunDir(tmp_path / "run"), ())


def test_old_plans_without_products_are_read(tmp_path):
    from hpcmpq.plan import plan_from_json

    run = RunDir(tmp_path / "run")
    prepare(config_of(formats=["int4"], groups={"include": ["*.0.mlp.*"]}), run, ())
    values = read_json(run.plan_path, "plan")
    for group in values["groups"]:
        del group["products"]
    del values["config"]["quantizer"]["activations"]
    assert all(not group.products for group in plan_from_json(values).space.groups)


class Bypassing(torch.nn.Module):
    """Uses a weight without calling the layer that holds it, as fused attention modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(input.flatten(1) @ self.first.weight.T))


def test_inputs_that_no_layer_sees_are_refused_when_planning(tmp_path):
    changes = {
        "model": {"factory": "tests.calibrate.test_activation_run:Bypassing"},
        "calibration": {"data": "hpcmpq.examples.digits:calibration", "num_samples": 4, "held_out": 2},
        "evaluation": {"data": "hpcmpq.examples.digits:evaluation", "num_samples": 4},
        "groups": {"include": ["*"]},
    }
    with pytest.raises(UserError, match=r"first.weight is used without calling its layer"):
        prepare(config_of(**changes), RunDir(tmp_path / "run"), (".",))
    plan = prepare(config_of(**changes, formats=["int4"]), RunDir(tmp_path / "other"), (".",))
    assert len(plan.space.groups) == 2


def test_inputs_of_fused_experts_are_refused_when_planning(tmp_path):
    with pytest.raises(UserError, match=r"experts.gate_up_proj is used without calling its layer"):
        plan_run(tmp_path, mixtral(), formats=["w8a8", "int4"])


def test_blocks_of_inputs_of_a_convolution_are_refused_before_anything_is_written(tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32))
    config = config_of(
        model={"factory": "tests.tiny_models:cnn"},
        calibration={"data": str(tmp_path / "images.npy"), "num_samples": 4, "held_out": 2},
        groups={},
        formats=["int8", "fp8_e4m3", "nvfp4"],
        quantizer={"group_size": None},
        sensitivity="secant",
        evaluation={"num_samples": 2},
    )
    run = RunDir(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"0.weight is of a convolution, whose inputs nvfp4 cannot round: .*exclude"
    ):
        prepare(config, run, ())
    assert not run.plan_path.exists()
