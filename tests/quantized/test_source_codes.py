"""Models that come in fp8 or fp4: an option whose weights are the source's bit for bit, exported as they came."""

import dataclasses
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.export import export
from hpcmpq.plan import plan_to_json
from hpcmpq.planning.stage import prepare
from hpcmpq.quantized.variants import open_variants
from hpcmpq.store.json_files import write_artefact, write_json
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama, plan_run
from tests.models.test_dequantized import save

pytestmark = pytest.mark.slow

WIDE = {"hidden_size": 256, "intermediate_size": 384}


def in_fp8(path: Path) -> None:
    """A model's directory with its layers in e4m3, 128 by 128 weights a float32 scale, as DeepSeek's are."""
    torch.manual_seed(1)
    stored = load_file(path / "model.safetensors")
    for name, weight in list(stored.items()):
        if name.endswith("_proj.weight"):
            rows, columns = weight.shape
            blocks = weight.float().reshape(rows // 128, 128, columns // 128, 128)
            scale = blocks.abs().amax((1, 3)) / 448 * (0.8 + 0.4 * torch.rand(rows // 128, columns // 128))
            codes = (blocks / scale[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored[name], stored[f"{name}_scale_inv"] = codes.reshape(weight.shape), scale
    save(path, stored, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


def decoded(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes times the scales of their blocks, by definition."""
    return codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)


def solved(run: RunDir, assignment: dict[str, str], size: float = 1.0) -> None:
    write_json(run.solution_path, {"assignment": assignment, "costs": {"size_bytes": size}})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_fp8_are_taken_and_exported_as_they_came(tmp_path, dtype):
    model = {"path": str(tmp_path / "model"), "dtype": dtype}
    run, plan = plan_run(
        tmp_path, llama(**WIDE), edit=in_fp8, model=model, target="vllm", formats=["int4", "fp8_block"],
        quantizer={"group_size": 64},
    )  # fmt: skip
    assert plan.facts["model.codes"] == "fp8_block"
    source = load_file(tmp_path / "model" / "model.safetensors")
    variants = open_variants(run, plan)
    for group in plan.space.groups:
        for name, weight in variants.quantized(group, "fp8_block").items():
            assert torch.equal(weight, variants.model.get_parameter(name))
            assert torch.equal(weight, decoded(source[name], source[f"{name}_scale_inv"]).to(weight.dtype))
    solved(run, {group.name: "fp8_block" for group in plan.space.groups})
    assert "not verified" not in export(run, "compressed_tensors")
    written = load_file(run.path / "exports" / "compressed_tensors" / "model.safetensors")
    coded = [name for name in source if f"{name}_scale_inv" in source]
    assert len(coded) == 14
    for name in coded:
        assert torch.equal(written[name].view(torch.uint8), source[name].view(torch.uint8))
        assert torch.equal(written[f"{name}_scale"].float(), source[f"{name}_scale_inv"])


def test_a_run_from_before_goes_on_rounding_and_a_source_that_has_gone_is_named(tmp_path):
    run, plan = plan_run(tmp_path, llama(**WIDE), edit=in_fp8, formats=["fp8_block"])
    (path,) = (tmp_path / "model").glob("*.safetensors")
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="which holds the weights in fp8_block .* is gone; bring it back"):
        open_variants(run, plan).quantized(plan.space.groups[0], "fp8_block")
    other = load_file_of(kept, tmp_path)
    other["model.layers.0.self_attn.q_proj.weight"] = other["model.layers.0.self_attn.q_proj.weight"].flip(0)
    save_file(other, path, {"format": "pt"})
    with pytest.raises(PlanMismatch, match="holds other weights in fp8_block than the run was planned with"):
        open_variants(run, plan)
    path.write_bytes(kept)
    facts = {name: value for name, value in plan.facts.items() if name != "model.codes"}
    write_artefact(run.plan_path, plan_to_json(dataclasses.replace(plan, facts=facts)))
    before = prepare(plan.config, run, ())
    assert "model.codes" not in before.facts
    variants = open_variants(run, before)
    group = before.space.groups[0]
    [weight] = variants.quantized(group, "fp8_block").values()
    assert not torch.equal(weight, variants.model.get_parameter(group.members[0].parameter))


def load_file_of(content: bytes, folder: Path) -> dict[str, Tensor]:
    """The tensors in the bytes of a file."""
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")


def in_fp4(path: Path) -> None:
    """A GPT-OSS's experts in mxfp4, with every number and scales of many sizes."""
    stored = load_file(path / "model.safetensors")
    torch.manual_seed(2)
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = stored.pop(name).shape
        shape = experts, rows, columns // 32
        stored[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        stored[f"{name}_blocks"][0, 0] = 0x11  # halves alone
        stored[f"{name}_scales"] = torch.randint(112, 124, shape, dtype=torch.uint8)
    save_file(stored, path / "model.safetensors", {"format": "pt"})
    save(path, stored, quantization_config={"quant_method": "mxfp4"})


def test_fp4_of_powers_of_two_is_found_again(tmp_path):
    torch.manual_seed(0)
    made = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=32, vocab_size=256, num_local_experts=3, num_experts_per_tok=2,
            max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    run, plan = plan_run(tmp_path, made, edit=in_fp4, formats=["mxfp4a16", "int4"])
    variants = open_variants(run, plan)
    experts = [g for g in plan.space.groups if ".experts." in g.name]
    assert len(experts) == 2
    for group in experts:
        [weight] = variants.quantized(group, "mxfp4a16").values()
        assert torch.equal(weight, variants.model.get_parameter(group.members[0].parameter))
