"""ModelOpt's layout: bytes read back by the layout's definition, and by NVIDIA's own packer where it is installed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.export import export, weight_bytes
from hpcmpq.export.modelopt import quantization
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantized.variants import open_variants
from hpcmpq.quantizers import choose_qparams, encode
from hpcmpq.store.json_files import read_json, write_json
from tests.export.planned import llama, plan_run, solve_by_turns

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])


def unpacked(tensors: dict[str, Tensor], name: str, algorithm: str) -> Tensor:
    """The weight [M, K] that the layout means, written out one algorithm at a time."""
    stored, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
    if algorithm in ("W4A16_NVFP4", "NVFP4"):
        code_MK = torch.stack([stored & 15, stored >> 4], -1).flatten(1)
        block_MK = scale.float().repeat_interleave(16, 1)
        return E2M1[code_MK.long()] * block_MK * tensors[f"{name}.weight_scale_2"]
    if algorithm == "MXFP8":
        return stored.float() * (2.0 ** (scale.int() - 127)).repeat_interleave(32, 1)
    if algorithm == "FP8_PB_WO":
        return stored.float() * scale[:, 0, :, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert algorithm == "FP8_PER_CHANNEL_PER_TOKEN"
    return stored.float() * scale[:, None]


def test_every_layer_means_the_runs_weight_and_fused_layers_share_their_global_scale(tmp_path):
    """Of a model in memory, and streamed."""
    made = llama(num_key_value_heads=4, intermediate_size=256)
    formats = ["nvfp4a16", "nvfp4", "fp8_e4m3", "fp8_block", "mxfp8", "bf16"]
    run, plan = plan_run(tmp_path, made, torch.float32, target="tensorrt_llm", formats=formats)
    assignment = solve_by_turns(run, plan)
    assert set(assignment.values()) == set(formats)
    line = export(run, "modelopt")
    assert "not verified: its engines need a GPU" in line
    assert (
        "not for SGLang, which has no place for scales of FP8_PB_WO, FP8_PER_CHANNEL_PER_TOKEN, MXFP8" in line
    )
    directory = run.path / "exports" / "modelopt"
    tensors = load_file(directory / "model.safetensors")
    settings = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    assert settings["quant_algo"] == "MIXED_PRECISION"
    variants = open_variants(run, plan)
    for group in plan.space.groups:
        quantized = variants.quantized(group, assignment[group.name])
        for parameter, weight_MK in quantized.items():
            name = parameter.removesuffix(".weight")
            if assignment[group.name] == "bf16":
                assert name in settings["exclude_modules"]
                assert torch.equal(tensors[parameter].float(), weight_MK)
                continue
            algorithm = settings["quantized_layers"][name]["quant_algo"]
            assert torch.equal(unpacked(tensors, name, algorithm), weight_MK)
        common = {float(tensors[s]) for p in quantized if (s := f"{p}_scale_2") in tensors}
        assert len(common) == (1 if "nvfp4" in assignment[group.name] else 0)
        inputs = {
            float(tensors[s])
            for p in quantized
            if (s := f"{p.removesuffix('.weight')}.input_scale") in tensors
        }
        assert len(inputs) == (1 if assignment[group.name] == "nvfp4" else 0)
        [largest] = {e for places in variants.activations.places for n in places.values()
                     if f"{n}.weight" in quantized for e in variants.activations.maxima[n]}  # fmt: skip
        assert all(x == pytest.approx(largest / (6 * 448), rel=1e-6) for x in inputs)
    assert {"lm_head", "model.embed_tokens"} <= set(settings["exclude_modules"])
    predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
    assert weight_bytes(directory) == pytest.approx(predicted, rel=0.01)

    values = read_json(run.plan_path, "")
    values["config"]["model"]["stream"] = True
    write_json(run.plan_path, values)
    export(run, "modelopt")
    streamed = load_file(directory / "model.safetensors")
    assert streamed.keys() == tensors.keys()
    for name, tensor in streamed.items():
        assert tensor.dtype == tensors[name].dtype and tensor.shape == tensors[name].shape
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, tensors[name]))), name
    assert json.loads((directory / "hf_quant_config.json").read_text())["quantization"] == settings


def test_one_algorithm_for_all_is_named_without_a_list():
    algorithm = {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    values = quantization({"a": algorithm, "b": algorithm}, ["lm_head", r"re:.*layers\.0\.experts\..*"])
    assert values["quant_algo"] == "W4A16_NVFP4"
    assert "quantized_layers" not in values
    assert values["exclude_modules"] == ["*layers.0.experts.*", "lm_head"]


def test_formats_without_an_algorithm_are_refused(tmp_path):
    run, plan = plan_run(tmp_path, llama(), formats=["int4", "fp8_e4m3"])
    solve_by_turns(run, plan)
    with pytest.raises(UserError, match="modelopt cannot hold int4; .* target: tensorrt_llm"):
        export(run, "modelopt")


def test_fp4_bytes_are_those_of_nvidias_packer():
    tensor = pytest.importorskip(
        "modelopt.torch.quantization.qtensor.nvfp4_tensor", reason="nvidia-modelopt is not installed"
    ).NVFP4QTensor
    from hpcmpq.export.compressed_schemes import fp8_codes, pack_fp4

    weight_MK = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 0.02
    qparams = choose_qparams(weight_MK, FORMATS["nvfp4a16"], Quantizer())
    codes_MK = encode(weight_MK, qparams, FORMATS["nvfp4a16"], Quantizer())
    scale_MS = fp8_codes(qparams)
    packed, _, _ = tensor.quantize(weight_MK.clone(), 16, scale_MS, qparams.global_scale)
    assert torch.equal(packed._quantized_data, pack_fp4(codes_MK))
