"""A directory whose config says a dtype that its weights do not fit is refused when planning."""

import json
from pathlib import Path

import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.export import export, weight_bytes
from hpcmpq.models.stored_dtype import check_scales, check_stored_dtype
from hpcmpq.space import Group, Member, SearchSpace
from tests.export.planned import llama, plan_run, solve_by_turns

pytestmark = pytest.mark.slow


def say_float16(directory: Path) -> None:
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"dtype": "float16"}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_weight_beyond_float16_is_named_with_its_value(tmp_path, name, stream):
    made = llama()
    made.get_parameter(name).data.view(-1)[7] = -70_000.0
    config = {"model": {"path": str(tmp_path / "model"), "stream": stream}, "formats": ["int4"]}
    with pytest.raises(
        UserError, match=rf"{name} holds -70000, and .* stored in float16, which ends at 65504"
    ):
        plan_run(tmp_path, made, torch.float32, say_float16, **config)
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize("stream", [False, True])
def test_what_rounds_to_the_largest_number_or_is_stored_wider_is_planned(tmp_path, stream):
    made = llama()
    made.model.norm.weight.data[7] = 65_510.0  # nearer to 65504 than to the next step
    config = {"model": {"path": str(tmp_path / "model"), "stream": stream}, "formats": ["int4"]}
    plan_run(tmp_path, made, torch.float32, say_float16, **config)
    made.model.norm.weight.data[7] = 1e6
    (tmp_path / "wide").mkdir()
    config["model"]["path"] = str(tmp_path / "wide" / "model")
    plan_run(tmp_path / "wide", made, torch.float32, **config)


def say_nothing(directory: Path) -> None:
    values = json.loads((directory / "config.json").read_text())
    del values["dtype"]
    (directory / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(("target", "name"), [("transformers", "compressed_tensors"), ("llama_cpp", "gguf")])
def test_where_a_config_names_no_dtype_bytes_are_counted_as_they_are_written(tmp_path, target, name):
    model = {"path": str(tmp_path / "model"), "dtype": "bfloat16"}
    run, plan = plan_run(
        tmp_path, llama(), edit=say_nothing, model=model, target=target, formats=["int4", "int8"],
        quantizer={"group_size": 32},
    )  # fmt: skip
    solve_by_turns(run, plan)
    export(run, name)
    predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
    assert weight_bytes(run.path / "exports" / name) == pytest.approx(predicted, rel=0.01)


def test_buffers_and_scales_count_too():
    layer = torch.nn.Linear(32, 2, bias=False)
    layer.register_buffer("shift", torch.tensor([1e5]))
    with pytest.raises(UserError, match="shift holds 100000"):
        check_stored_dtype(layer, "m", torch.float16)
    check_stored_dtype(layer, "m", torch.bfloat16)
    layer.weight.data[1, 3] = 65_504 * 7.4
    space = SearchSpace((Group("weight", (Member("weight", 2, 32),)),), (("int4", "bf16"),))
    check_scales(layer, space, torch.float16)
    layer.weight.data[1, 3] = 65_504 * 7.6
    with pytest.raises(UserError, match="weight holds 497830, whose scale is beyond the float16"):
        check_scales(layer, space, torch.float16)
