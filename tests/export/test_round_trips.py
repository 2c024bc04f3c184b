"""Every export, loaded back by a real reader, gives the outputs of the fake-quantized model."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.export import EXPORTERS, export, weight_bytes
from hpcmpq.export.compressed_schemes import stored
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants, open_variants
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.packing import pack
from hpcmpq.store.run_dir import RunDir
from hpcmpq.tables import named_by
from tests.export.planned import (
    llama,
    mistral,
    mixtral,
    opt,
    plan_run,
    qwen2,
    qwen3,
    solve_by_turns,
    t5_encoder,
)
from tests.export.readers import READERS, skip_without_reader

pytestmark = pytest.mark.slow

INTEGERS = [f"int{bits}" for bits in range(2, 9)]
GGUF = ["int4", "int5", "int8"]
MLX = ["int2", "int3", "int4", "int5", "int6", "int8", "mxfp4a16"]
CASES = {
    "fake_quantized": {"formats": INTEGERS},
    "compressed_tensors": {"target": "vllm", "formats": [*INTEGERS, "fp8_e4m3"]},
    "compressed_tensors of channels": {"target": "transformers", "quantizer": {"group_size": None}},
    "gguf": {"target": "llama_cpp", "formats": GGUF, "quantizer": {"group_size": 32}},
    "gguf of qwen2": {"target": "llama_cpp", "formats": GGUF, "quantizer": {"group_size": 32}},
    "gguf of super-blocks": {
        "target": "llama_cpp",
        "formats": ["q2_k", "q3_k", "q4_k", "iq4_nl", "iq4_xs", "q5_k", "q6_k", "q4_1", "q5_1"],
        "quantizer": {"group_size": 32},
    },
    **{
        f"gguf of {made}": {
            "target": "llama_cpp",
            "formats": ["int5", "iq4_nl", "int8", "q5_1"],
            "quantizer": {"group_size": 32, "rounding": rounding},
            "groups": {"include": ["*"]},
        }
        for made, rounding in (("embedding and head", "nearest"), ("one tied embedding", "gptq"))
    },
    "onnx": {"formats": ["int2", "int4", "int8"]},
    "mlx": {"target": "mlx", "formats": MLX, "quantizer": {"group_size": 32}},
    **{
        f"mlx of {name}": {"target": "mlx", "formats": MLX, "quantizer": {"group_size": 32}}
        for name in ("mistral", "qwen2", "qwen3")
    },
    "onnx of opt": {"formats": ["int2", "int4", "int8"]},
    "fake_quantized of mixtral": {"formats": INTEGERS},
    "compressed_tensors of float32 weights": {"target": "vllm", "dtype": torch.float32},
}

MADE = {
    "super-blocks": lambda: llama(hidden_size=256, intermediate_size=256, num_key_value_heads=4),
    "blocks": lambda: llama(num_key_value_heads=4, intermediate_size=256),
    "embedding and head": llama,
    "one tied embedding": qwen2,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mistral": mistral,
    "opt": opt,
    "mixtral": mixtral,
}


def tokens() -> Tensor:
    return torch.randint(256, (3, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def fake_quantized_logits(run: RunDir, plan: Plan, assignment: Mapping[str, str]) -> Tensor:
    variants = open_variants(run, plan)
    with variants.assigned(assignment):
        return variants.model(tokens()).logits


def check_refused(
    directory: Path, model: nn.Module, name: str, config: Mapping[str, object], message: str
) -> None:
    """That the export of a model by a config raises a `UserError` with the message and leaves nothing behind."""
    run, plan = plan_run(directory, model, **config)
    solve_by_turns(run, plan)
    with pytest.raises(UserError, match=message):
        export(run, name)
    assert not list(run.path.glob("exports/*"))


def test_every_exporter_has_a_reader_and_a_case():
    with_weights = set(EXPORTERS) - {
        "tool_configs",
        "modelopt",
    }  # the latter's readers need a GPU: test_modelopt.py
    assert set(READERS) == with_weights == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_reader_gives_the_fake_quantized_models_outputs(tmp_path, case):
    name = case.split()[0]
    skip_without_reader(name)
    made = MADE.get(case.partition(" of ")[2], llama)()
    run, plan = plan_run(tmp_path, made, **CASES[case])
    assignment = solve_by_turns(run, plan)
    assert len(set(assignment.values())) > 2
    line = export(run, name)
    assert ", verified: " in line
    directory = run.checkpoint_path if name == "fake_quantized" else run.path / "exports" / name
    read = READERS[name](directory)(tokens())
    expected = fake_quantized_logits(run, plan, assignment)
    assert b"site-packages" not in b"".join(path.read_bytes() for path in directory.iterdir())
    print(f"{case}: largest difference {float((read - expected).abs().max()):.3g}")
    assert expected.std() > 0.1
    torch.testing.assert_close(read, expected, rtol=0, atol=2e-6)
    if plan.config.target is not None:
        predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
        print(line)
        assert weight_bytes(directory) == pytest.approx(predicted, rel=0.01)


@torch.no_grad()
def largest_inputs(plan: Plan, layers: list[str]) -> dict[str, float]:
    """Of layers of the original, over the calibration samples."""
    model, found = load_model(plan.config.model), dict.fromkeys(layers, 0.0)

    def look(name: str, x: torch.Tensor) -> None:
        found[name] = max(found[name], float(x.abs().max()))

    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: look(name, args[0]))
    model(**load_splits(plan.config).calibration.inputs)
    return found


def test_fp4_and_fp8_in_blocks_are_read_back_without_a_difference(tmp_path):
    formats = ["int4", "nvfp4a16", "nvfp4", "mxfp4a16", "mxfp4", "mxfp8", "fp8_block", "bf16"]
    made = llama(num_key_value_heads=4, intermediate_size=256)
    run, plan = plan_run(tmp_path, made, target="vllm", formats=formats)
    assignment = solve_by_turns(run, plan)
    assert set(assignment.values()) == set(formats)
    export(run, "compressed_tensors")
    directory = run.path / "exports" / "compressed_tensors"
    written = load_file(directory / "model.safetensors")
    scales = {n.removesuffix(".input_global_scale"): float(x) for n, x in written.items() if "input_g" in n}
    largest = largest_inputs(plan, list(scales))
    layers = {m.parameter.removesuffix(".weight") for g in plan.space.groups
              if assignment[g.name] == "nvfp4" for m in g.members}  # fmt: skip
    assert scales.keys() == layers
    assert all(scales[name] == pytest.approx(6 * 448 / largest[name], rel=1e-6) for name in scales)
    found = json.loads((directory / "verification.json").read_text())
    assert found["verified"]
    assert found["difference"] < 1e-6
    assert found["largest_row_difference"] < 1e-6
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert settings["format"] == "mixed-precision"
    assert {group["format"] for group in settings["config_groups"].values()} == {
        *(
            "pack-quantized",
            "float-quantized",
            "nvfp4-pack-quantized",
            "mxfp4-pack-quantized",
            "mxfp8-quantized",
        )
    }
    predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
    assert weight_bytes(directory) == pytest.approx(predicted, rel=0.01)


ROUNDING = {
    "torch": ("round",),
    "torch.Tensor": ("round", "round_"),
    "hpcmpq.quantizers.integer": ("nearest_codes",),
    "hpcmpq.quantizers.gptq": ("nearest_codes",),
    "hpcmpq.quantizers.ranges": ("nearest_codes", "nearest_values"),
    "hpcmpq.quantizers.floating": ("nearest_values",),
    "hpcmpq.quantized.rounded_weights": ("choose_qparams", "encode", "fake_quantize"),
}
"""All that could round a weight."""


@pytest.mark.parametrize("case", ["fake_quantized", "compressed_tensors", "gguf", "onnx"])
@torch.no_grad()
def test_exporters_round_nothing_that_is_stored(tmp_path, monkeypatch, case):
    """Of a run whose codes are all made already an exporter needs codes and scales, and nothing that rounds."""
    made = llama()
    with torch.no_grad():
        made.model.layers[0].mlp.up_proj.weight *= 1e-5  # whose scales float16 holds with few bits
    quantizer = {"rounding": "gptq", **CASES[case].get("quantizer", {})}
    formats = [name for name in CASES[case]["formats"] if name.startswith("int")]
    config = {**CASES[case], "formats": formats, "quantizer": quantizer}
    run, plan = plan_run(tmp_path, made, **config)
    assignment = solve_by_turns(run, plan)
    expected = fake_quantized_logits(run, plan, assignment)
    variants = open_variants(run, plan).under(assignment)
    (tmp_path / "out").mkdir()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an exporter rounds")

    with monkeypatch.context() as patched:
        for place, names in ROUNDING.items():
            for name in names:
                patched.setattr(f"{place}.{name}", forbidden)
        with pytest.raises(AssertionError, match="an exporter rounds"):  # the guard works
            Variants(variants.model, plan.space, Quantizer()).weights(assignment)
        written = named_by(EXPORTERS[case])(plan, variants, assignment, tmp_path / "out")
    assert not [note for note in written.notes if "rounded" in note]
    torch.testing.assert_close(READERS[case](tmp_path / "out")(tokens()), expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_an_image_classifier_whose_layers_are_stored_under_other_names(tmp_path, tiny_model):
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "images.npy", images.numpy())
    data = {"data": str(tmp_path / "images.npy"), "num_samples": 8, "held_out": 2}
    run, plan = plan_run(
        tmp_path, tiny_model("vit"), torch.float32, calibration=data, quantizer={"group_size": 8}
    )
    assignment = solve_by_turns(run, plan)
    export(run, "compressed_tensors")
    read = transformers.AutoModelForImageClassification.from_pretrained(
        run.path / "exports" / "compressed_tensors", dtype=torch.float32
    )
    variants = open_variants(run, plan)
    with variants.assigned(assignment):
        expected = variants.model(images).logits
    assert torch.equal(read(images).logits, expected)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (
            "llama",
            {"formats": ["fp8_e5m2", "int4"]},
            r"cannot hold fp8_e5m2; set solver\.forbidden: {\"\*\": \[fp8_e5m2\]} .* target: transformers",
        ),
        ("llama", {"quantizer": {"symmetric": False}}, "holds symmetric codes only"),
        ("llama", {"quantizer": {"group_size": 80}}, "q_proj.weight has 128 inputs, not a multiple"),
        ("gpt2", {}, "holds linear layers only, transformer.h.0.attn.c_attn.weight is of a Conv1D"),
    ],
)
def test_what_compressed_tensors_cannot_hold_is_refused(tmp_path, tiny_model, model, config, message):
    made = llama() if model == "llama" else tiny_model(model)
    check_refused(tmp_path, made, "compressed_tensors", {"quantizer": {"group_size": 16}, **config}, message)


@pytest.mark.parametrize(
    ("made", "exclude", "reason"),
    [
        (llama, [], None),
        (t5_encoder, [], "_init_weights reads weights that are compressed .T5Attention"),
    ],
)
def test_checkpoints_that_transformers_cannot_load_are_named(tmp_path, made, exclude, reason):
    config = {"formats": ["int4"], "groups": {"exclude": exclude}}
    if made is t5_encoder:
        np.save(tmp_path / "ids.npy", np.arange(20 * 16).reshape(20, 16) % 256)
        config |= {"objective": "mse", "calibration": {"data": str(tmp_path / "ids.npy"), "num_samples": 4}}
        config["calibration"]["held_out"] = 2
    run, plan = plan_run(tmp_path, made(), **config)
    solve_by_turns(run, plan)
    line = export(run, "compressed_tensors")
    load = getattr(transformers, type(made()).__name__).from_pretrained
    if reason is None:
        assert "cannot load" not in line
        load(run.path / "exports" / "compressed_tensors")
        return
    assert re.search(f"not verified: this version of transformers cannot load it: .*{reason}", line)
    with pytest.raises((RuntimeError, AttributeError)):
        load(run.path / "exports" / "compressed_tensors")


def test_zero_points_for_vllm_are_read_back_without_a_difference(tmp_path):
    formats = ["int3", "int4", "int8", "bf16"]
    made = llama(num_key_value_heads=4, intermediate_size=256)
    run, plan = plan_run(tmp_path, made, target="vllm", formats=formats, quantizer={"symmetric": False})
    assert set(solve_by_turns(run, plan).values()) == set(formats)
    assert "verified: compressed-tensors" in export(run, "compressed_tensors")
    directory = run.path / "exports" / "compressed_tensors"
    found = json.loads((directory / "verification.json").read_text())
    assert found["difference"] < 1e-6
    assert found["largest_row_difference"] < 1e-6
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    assert not any(group["weights"]["symmetric"] for group in settings["config_groups"].values())
    predicted = json.loads(run.solution_path.read_text())["costs"]["size_bytes"]
    assert weight_bytes(directory) == pytest.approx(predicted, rel=0.005)


def test_packed_zero_points_are_those_of_compressed_tensors():
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    for num_bits in range(2, 9):
        zero_MS = torch.randint(
            2**num_bits, (64, 3), generator=torch.Generator().manual_seed(num_bits), dtype=torch.int32
        )
        qparams = QParams(torch.ones(64, 3), zero_MS)
        format, quantizer = FORMATS[f"int{num_bits}"], Quantizer(group_size=8, symmetric=False)
        ours = stored("w", torch.zeros(64, 24, dtype=torch.uint8), qparams, format, quantizer)
        signed_MS = (zero_MS - 2 ** (num_bits - 1)).to(torch.int8)
        assert torch.equal(ours["w_zero_point"], pack_to_int32(signed_MS, num_bits, packed_dim=0))


def test_packed_words_are_those_of_compressed_tensors():
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    for num_bits in range(1, 9):
        low = -(2 ** (num_bits - 1))
        codes_MK = torch.randint(low, -low, (5, 70), generator=torch.Generator().manual_seed(num_bits))
        assert torch.equal(pack(codes_MK, num_bits, low), pack_to_int32(codes_MK.to(torch.int8), num_bits))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"formats": ["int3", "int4"]},
            r"cannot hold int3; set solver\.forbidden: {\"\*\": \[int3\]} .* new run with int2, int4, int8",
        ),
        ({"formats": ["int3"]}, "cannot hold int3; plan a new run with int2, int4, int8$"),
        ({"formats": ["int4"], "quantizer": {"group_size": None}}, "in groups of 16, 32, 64, 128, 256"),
        (
            {"formats": ["int4"], "quantizer": {"group_size": 256}},
            "q_proj.weight has 128 inputs, not a multiple",
        ),
    ],
)
def test_what_onnx_cannot_hold_is_refused(tmp_path, config, message):
    check_refused(tmp_path, llama(), "onnx", config, message)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (
            "llama",
            {"formats": ["int4", "int6"]},
            r"cannot hold int6; set solver\.forbidden: {\"\*\": \[int6\]} .* new run with target: llama_cpp",
        ),
        (
            "llama",
            {"formats": ["int4"], "quantizer": {"group_size": 64}},
            "target llama_cpp holds groups of 32",
        ),
        ("gpt2", {"formats": ["int4"]}, "knows the architectures llama, .*, deepseek_v3, not 'gpt2'"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(tmp_path, tiny_model, model, config, message):
    made = llama() if model == "llama" else tiny_model(model)
    check_refused(tmp_path, made, "gguf", {"quantizer": {"group_size": 32}, **config}, message)


def test_a_model_too_large_for_one_onnx_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcmpq.export.onnx.MAX_BYTES", 10**6)
    check_refused(
        tmp_path, llama(), "onnx", {"formats": ["int4"]}, "takes 1.25 MB in float32, one ONNX file holds 1 MB"
    )
