"""Checkpoints that another tool quantized: their codes become the run's own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpcmpq.errors import UserError
from hpcmpq.export import export
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantized.checkpoint import open_checkpoint
from hpcmpq.quantized.variants import open_variants
from hpcmpq.quantizers.packing import pack
from hpcmpq.space import Member
from tests.export.planned import llama, plan_run, solve_by_turns
from tests.export.readers import READERS
from tests.export.test_round_trips import fake_quantized_logits, tokens

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A compressed-tensors checkpoint of int4 codes that compensate their errors."""
    quantizer = {"rounding": "gptq", "group_size": 32}
    path = tmp_path_factory.mktemp("packed")
    run, plan = plan_run(path, llama(), formats=["int4"], quantizer=quantizer, target="vllm")
    solve_by_turns(run, plan)
    export(run, "compressed_tensors")
    return run.path / "exports" / "compressed_tensors"


@torch.no_grad()
def test_a_compressed_tensors_checkpoint_is_what_the_run_measures_and_exports(tmp_path, packed):
    quantizer = {"group_size": 32, "checkpoints": {"int4": str(packed)}}
    run, plan = plan_run(tmp_path, llama(), formats=["int4"], quantizer=quantizer, target="vllm")
    assignment = solve_by_turns(run, plan)
    expected = READERS["compressed_tensors"](packed)(tokens())
    torch.testing.assert_close(fake_quantized_logits(run, plan, assignment), expected, rtol=0, atol=2e-6)
    export(run, "compressed_tensors")
    first, second = (
        load_file(path / "model.safetensors")
        for path in (packed, run.path / "exports" / "compressed_tensors")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_formats_of_the_run_are_rounded_as_ever(tmp_path, packed):
    quantizer = {"group_size": 32, "checkpoints": {"int4": str(packed)}}
    run, plan = plan_run(tmp_path, llama(), formats=["int3", "int4"], quantizer=quantizer)
    variants = open_variants(run, plan)
    member = plan.space.groups[0].members[0]
    read_MK, _ = open_checkpoint(str(packed)).codes(member, FORMATS["int4"], variants.quantizer)
    assert torch.equal(variants.encoded(member, "int4")[0], read_MK)
    assert variants.encoded(member, "int3")[0].abs().max() <= 4


@torch.no_grad()
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptqs_own_layout_means_scale_times_code_less_zero(tmp_path, symmetric, version):
    """Written here by its definition: w[k, m] = scales[s, m] · (q[k, m] − z[s, m])."""
    run, plan = plan_run(tmp_path, llama(), formats=["int4"], quantizer={"group_size": 32})
    generator = torch.Generator().manual_seed(0)
    tensors, expected = {}, {}
    for group in plan.space.groups:
        [member] = group.members
        q_KM = torch.randint(16, (member.num_columns, member.num_rows), generator=generator)
        z_SM = torch.randint(1, 16, (member.num_columns // 32, member.num_rows), generator=generator)
        z_SM = torch.full_like(z_SM, 8) if symmetric else z_SM
        scale_SM = torch.rand(z_SM.shape, generator=generator).add(0.1).half()
        name = member.parameter.removesuffix(".weight")
        tensors |= {
            f"{name}.qweight": pack(q_KM.t(), 4, 0).t().contiguous(),
            f"{name}.qzeros": pack(z_SM - int(version == "gptq"), 4, 0),
            f"{name}.scales": scale_SM,
            f"{name}.g_idx": torch.arange(member.num_columns) // 32,
        }
        s_K = torch.arange(member.num_columns) // 32
        expected[member.parameter] = (scale_SM.float()[s_K] * (q_KM - z_SM[s_K])).t()
    source = tmp_path / "gptq"
    source.mkdir()
    save_file(tensors, source / "model.safetensors")
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": version}
    (source / "config.json").write_text(json.dumps({"quantization_config": settings}))
    quantizer = {"group_size": 32, "symmetric": symmetric, "checkpoints": {"int4": str(source)}}
    (tmp_path / "second").mkdir()
    run, plan = plan_run(tmp_path / "second", llama(), formats=["int4"], quantizer=quantizer)
    variants = open_variants(run, plan)
    for group in plan.space.groups:
        for name, weight in variants.quantized(group, "int4").items():
            assert torch.equal(weight, expected[name])
    if not symmetric:
        member = plan.space.groups[0].members[0]
        wrong = type(variants.quantizer)(group_size=32)
        with pytest.raises(UserError, match="has zero points; set quantizer.symmetric: false"):
            open_checkpoint(str(source)).codes(member, FORMATS["int4"], wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"formats": ["int8"], "format": "int8"}, r"has weight_packed \[128, 16\] where int8"),
        (
            {"group_size": 64},
            r"has weight_scale \[128, 4\] where int4 in groups of this config has \[128, 2\]",
        ),
        ({"groups": {"include": ["*.o_proj", "lm_head"]}}, "holds no quantized lm_head"),
        (
            {"formats": ["int3"]},
            "quantizer.checkpoints names int4; it takes integer formats that formats lists",
        ),
    ],
)
def test_what_does_not_fit_the_config_is_refused(tmp_path, packed, change, message):
    checkpoints = {change.get("format", "int4"): str(packed)}
    quantizer = {"group_size": change.get("group_size", 32), "checkpoints": checkpoints}
    values = {"formats": change.get("formats", ["int4"]), "groups": change.get("groups", {})}
    with pytest.raises(UserError, match=message):
        plan_run(tmp_path, llama(), quantizer=quantizer, **values)


@pytest.mark.parametrize("part", ["weight_g_idx", "g_idx"])
def test_inputs_that_share_scales_in_another_order_are_refused(tmp_path, packed, part):
    """compressed-tensors' ``actorder: group`` and GPTQ's ``desc_act`` say for each input which group it is of."""
    in_order_K, name = torch.arange(128) // 32, "model.layers.0.self_attn.q_proj"
    member = Member(f"{name}.weight", 128, 128)
    gptq = {
        f"{name}.qweight": pack(torch.randint(16, (128, 128)), 4, 0).t().contiguous(),
        f"{name}.qzeros": pack(torch.full((4, 128), 7), 4, 0),
        f"{name}.scales": torch.ones(4, 128).half(),
    }
    tensors = load_file(packed / "model.safetensors") if part == "weight_g_idx" else gptq
    (tmp_path / "config.json").write_text(
        (packed / "config.json").read_text()
        if part == "weight_g_idx"
        else json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )

    def read(order_K: torch.Tensor) -> tuple:
        save_file({**tensors, f"{name}.{part}": order_K.int()}, tmp_path / "model.safetensors")
        return open_checkpoint(str(tmp_path)).codes(member, FORMATS["int4"], Quantizer(group_size=32))

    codes_MK, _ = read(in_order_K)
    assert torch.equal(read(torch.full((128,), -1))[0], codes_MK)
    with pytest.raises(UserError, match="inputs reordered"):
        read(in_order_K.flip(0))


def test_a_damaged_file_of_a_checkpoint_is_named(tmp_path, packed):
    (tmp_path / "config.json").write_text((packed / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((packed / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"cannot read .*model\.safetensors \(.*\); copy the checkpoint again"
    ):
        open_checkpoint(str(tmp_path))


def test_a_directory_that_is_not_quantized_is_refused(tmp_path):
    plan_run(tmp_path, llama(), formats=["int4"])
    with pytest.raises(UserError, match="quantizer.checkpoints reads compressed-tensors and gptq"):
        open_checkpoint(str(tmp_path / "model"))
