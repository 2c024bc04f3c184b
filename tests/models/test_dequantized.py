"""Models that are quantized already are planned for as plain ones, number by number, or refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from hpcmpq.config import parse_config, read_config
from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.export import export
from hpcmpq.models.cut_blocks import whole_blocks
from hpcmpq.models.dequantized import _save_plain, unpacked
from hpcmpq.planning.stage import prepare
from hpcmpq.planning.starter import write_starter
from hpcmpq.quantized.variants import open_variants
from hpcmpq.settings import ModelConfig
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import CORRECTION, TEXT, deepseek_v3, llama, plan_run, solve_by_turns


def save(path: Path, tensors: dict[str, Tensor], **settings) -> None:
    """Other tensors and settings in the directory of a saved model."""
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **settings}))


def plain(path: Path, directory: Path) -> dict[str, Tensor]:
    """Plain weights of a quantized model; its config says nothing of the old form."""
    config = unpacked(ModelConfig(path=str(path)), directory)
    assert "quant" not in (directory / "config.json").read_text()
    return load_file(Path(str(config.path)) / "model.safetensors")


def test_blocks_of_fp8_are_codes_times_scales(model_directory, tmp_path):
    path, want, stored = model_directory("llama"), {}, {}
    for name, weight in load_file(path / "model.safetensors").items():
        stored[name] = want[name] = weight
        if name.endswith("_proj.weight"):
            scale = torch.rand(-(-weight.shape[0] // 8), weight.shape[1] // 8) * 1e-3 + 1e-4
            wide = scale.repeat_interleave(8, 0)[: weight.shape[0]].repeat_interleave(8, 1)
            stored[name] = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            want[name] = stored[name].float() * wide
    save(path, stored, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]})
    beside = (
        "LICENSE",
        "spm.model",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "modeling_own.py",
    )
    for name in beside:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("of the model")
    (path / "quant_config.json").write_text("{}")
    got = plain(path, tmp_path / "plain")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all((tmp_path / "plain" / name).read_text() == "of the model" for name in beside)
    assert not (tmp_path / "plain" / "quant_config.json").exists()


@pytest.mark.parametrize("rows", [192, 576], ids=["transformers finds other blocks", "and refuses"])
def test_scales_of_cut_blocks_belong_to_the_rows_before_the_cut(tmp_path, rows):
    path, want, stored = tmp_path / "model", {}, {}
    llama(intermediate_size=rows, num_hidden_layers=1).save_pretrained(path)
    for name, weight in load_file(path / "model.safetensors").items():
        stored[name] = want[name] = weight
        if name.endswith("_proj.weight"):
            scale = torch.rand(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128)) * 1e-3 + 1e-4
            wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            wide = wide[: weight.shape[0], : weight.shape[1]]
            stored[name] = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
            want[name] = stored[name].float() * wide
    save(path, stored, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    got = plain(path, tmp_path / "plain")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_codes_of_two_values_a_byte_beside_fp8_keep_all_their_columns(monkeypatch):
    """As those of experts in fp4 in a directory of fp8."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    def unpack(self, quantized, scales):
        return torch.stack([quantized % 16, quantized // 16], dim=-1).flatten(-2)

    monkeypatch.setattr(Fp8Dequantize, "_dequantize_one", unpack)
    with whole_blocks((2, 2)):
        values = Fp8Dequantize._dequantize_one(
            None, torch.full((3, 4), 0x21, dtype=torch.int8), torch.ones(3, 1)
        )
    assert values.tolist() == [[1, 2] * 4] * 3


def test_a_directory_of_fp8_that_lacks_a_tensor_is_refused(model_directory, tmp_path):
    path = model_directory("llama")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save(path, tensors, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]})
    with pytest.raises(UserError, match=r"lack 1 parameters, first model\.layers\.1\.mlp\.down_proj\.weight"):
        unpacked(ModelConfig(path=str(path)), tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_what_transformers_keeps_in_float32_is_not_rounded_on_the_way(tmp_path):
    model = deepseek_v3().bfloat16()
    bias = model.get_buffer(CORRECTION)
    bias.data = 5 + 0.01 * torch.randn(4)
    _save_plain(model, tmp_path, ModelConfig(path="fp8", dtype="bfloat16"))
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors[CORRECTION], bias.data) and tensors[CORRECTION].dtype == torch.float32
    assert tensors["lm_head.weight"].dtype == torch.bfloat16


def test_mxfp4_is_half_bytes_times_powers_of_two(tmp_path):
    config = transformers.GptOssConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, vocab_size=64, num_local_experts=3, num_experts_per_tok=2,
    )  # fmt: skip
    transformers.GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    stored, want = load_file(tmp_path / "model" / "model.safetensors"), {}
    for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = stored.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, (experts, rows, columns // 32), dtype=torch.uint8)
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
        pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], -1)
        wide = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        want[name] = wide.reshape(experts, rows, columns).mT
    save(tmp_path / "model", stored, quantization_config={"quant_method": "mxfp4"})
    got = plain(tmp_path / "model", tmp_path / "plain")
    assert len(want) == 2
    assert all(torch.equal(got[name], weight) for name, weight in want.items())


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    """A GGUF file of codes of 4 and 8 bits."""
    run, plan = plan_run(
        tmp_path_factory.mktemp("made"), llama(), target="llama_cpp", quantizer={"group_size": 32},
        formats=["int4", "int8"],
    )  # fmt: skip
    solve_by_turns(run, plan)
    export(run, "gguf")
    return run.path / "exports" / "gguf" / "model.gguf"


@pytest.mark.slow
def test_a_gguf_file_is_planned_and_exported_as_a_model_like_any_other(gguf_file, tmp_path):
    import gguf

    (tmp_path / "text.txt").write_text(TEXT)
    data = {"data": str(tmp_path / "text.txt"), "num_samples": 4, "sequence_length": 16}
    config = parse_config({
        "model": {"path": str(gguf_file)}, "calibration": data, "formats": ["int4", "int8"],
        "quantizer": {"group_size": 32},
    })  # fmt: skip
    run = RunDir(tmp_path / "run")
    plan = prepare(config, run, ())
    assert prepare(config, run, ()).fingerprint == plan.fingerprint
    moved = RunDir(tmp_path / "elsewhere")
    shutil.move(run.path, moved.path)
    plan = read_plan(moved)
    model = open_variants(moved, plan).model
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file).tensors}
    for theirs, ours in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        tensor = stored[f"blk.1.ffn_{theirs}.weight"]
        want = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(model.get_parameter(f"model.layers.1.mlp.{ours}.weight"), want)
    solve_by_turns(moved, plan)
    export(moved, "compressed_tensors")
    written = json.loads((moved.path / "exports/compressed_tensors/config.json").read_text())
    assert written["quantization_config"]["quant_method"] == "compressed-tensors"
    assert "gguf" not in json.dumps(written).lower()
    other = tmp_path / "other.gguf"
    content = bytearray(gguf_file.read_bytes())
    content[-5] ^= 1
    other.write_bytes(content)
    with pytest.raises(
        PlanMismatch, match="holds the dequantized weights of .*model.gguf in float32, and .*other.gguf"
    ):
        unpacked(ModelConfig(path=str(other)), moved.original_path)


def test_init_looks_at_a_gguf_file(gguf_file, tmp_path):
    groups = write_starter(gguf_file, tmp_path / "config.yaml")
    assert len(groups) == 8
    assert read_config(tmp_path / "config.yaml").model.path == str(gguf_file)


def quantization(values: dict) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        save(path, load_file(path / "model.safetensors"), **values)

    return edit


def codes(dtype: torch.dtype, scales: bool) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        tensors[name] = tensors[name].to(dtype)
        save(path, {**tensors, **({f"{name}_scale": torch.ones(1)} if scales else {})})

    return edit


@pytest.mark.parametrize(("edit", "how"), [
    (quantization({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "its config says gptq"),
    (quantization({"quantization_config": {"quant_method": "compressed-tensors"}}), "config says compressed-tensors"),
    (quantization({"text_config": {"quantization_config": {"quant_method": "awq"}}}), "its config says awq"),
    (quantization({"compression_config": {"format": "int"}}), "its config says an unnamed method"),
    (lambda path: (path / "hf_quant_config.json").write_text("{}"), "its config says hf_quant_config.json"),
    (codes(torch.int8, scales=True), "q_proj.weight holds codes, and config.json does not say of what form"),
    (codes(torch.int8, scales=False), "q_proj.weight holds codes"),
    (codes(torch.float8_e4m3fn, scales=True), "q_proj.weight holds codes"),
], ids=["gptq", "compressed-tensors", "inner", "old key", "modelopt", "int8", "int8 alone", "fp8"])  # fmt: skip
def test_other_forms_are_refused_in_a_sentence(model_directory, tmp_path, edit, how):
    path = model_directory("llama")
    edit(path)
    with pytest.raises(UserError, match=f"are quantized already .*{how}.*use model.factory"):
        unpacked(ModelConfig(path=str(path)), tmp_path / "plain")
    with pytest.raises(UserError, match="are quantized already"):
        write_starter(path, tmp_path / "config.yaml")


def test_plain_numbers_are_left_where_they_are(model_directory, tmp_path):
    path = model_directory("llama")
    config = ModelConfig(path=str(path))
    assert unpacked(config, tmp_path / "plain") is config
    codes(torch.float8_e4m3fn, scales=False)(path)  # plain numbers of few bits
    assert unpacked(config, tmp_path / "plain") is config
    assert unpacked(ModelConfig(factory="a:b"), tmp_path / "plain").factory == "a:b"
