"""Experts that transformers keeps in one tensor, in checkpoints that hold them one by one."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bench.family_models import make_model
from bench.family_recipes import FAMILIES
from hpcmpq.errors import NotReproduced
from hpcmpq.export import decompressed, export, weight_bytes
from hpcmpq.quantized.variants import open_variants
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import mixtral, plan_run, solve_by_turns

pytestmark = pytest.mark.slow

HALVES = {
    "w1": ("gate_up_proj", slice(0, 192)),
    "w3": ("gate_up_proj", slice(192, 384)),
    "w2": ("down_proj", slice(None)),
}


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def exported(request, tmp_path_factory):
    """A Mixtral of two layers of three experts, whose layers take formats by turns, for an engine."""
    config = {"target": request.param, "formats": ["int3", "int4", "int8"], "objective": "kl"}
    run, plan = plan_run(tmp_path_factory.mktemp(request.param), mixtral(), **config)
    assignment = solve_by_turns(run, plan)
    return run, plan, assignment, export(run, "compressed_tensors")


def unpacked(packed_MW: torch.Tensor, num_bits: int, num_columns: int) -> torch.Tensor:
    """Codes of a row one after another from the lowest bit of its first word on, zero being 2^(b-1)."""
    words = [[word & 0xFFFFFFFF for word in row] for row in packed_MW.tolist()]
    streams = [sum(word << 32 * place for place, word in enumerate(row)) for row in words]
    mask = 2**num_bits - 1
    return torch.tensor(
        [
            [(stream >> num_bits * k & mask) - 2 ** (num_bits - 1) for k in range(num_columns)]
            for stream in streams
        ]
    )


@torch.no_grad()
def test_each_expert_is_a_layer_under_the_name_that_the_original_has(exported):
    """Codes times scales of each expert's tensors are the rows of the run's rounded weight, exactly."""
    run, plan, assignment, line = exported
    assert "verified: compressed-tensors" in line
    directory = run.path / "exports" / "compressed_tensors"
    tensors = load_file(directory / "model.safetensors")
    variants = open_variants(run, plan)
    rounded, bits = {}, {}
    for group in plan.space.groups:
        rounded |= variants.quantized(group, assignment[group.name])
        bits |= {member.parameter: int(assignment[group.name][3:]) for member in group.members}
    for layer, expert, own in ((0, 0, "w1"), (0, 2, "w3"), (1, 1, "w2"), (1, 2, "w1")):
        stem = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{own}.weight"
        part, rows = HALVES[own]
        parameter = f"model.layers.{layer}.mlp.experts.{part}"
        expected_MK = rounded[parameter][expert, rows].float()
        assert tensors[f"{stem}_shape"].tolist() == list(expected_MK.shape)
        codes_MK = unpacked(tensors[f"{stem}_packed"], bits[parameter], expected_MK.shape[1])
        scale_MK = tensors[f"{stem}_scale"].float().repeat_interleave(64, 1)
        assert torch.equal(codes_MK * scale_MK, expected_MK)
    assert not any("gate_up_proj" in name for name in tensors)
    assert weight_bytes(directory) == pytest.approx(
        json.loads(run.solution_path.read_text())["costs"]["size_bytes"], rel=0.01
    )


def test_it_is_said_where_transformers_itself_unpacks_experts_by_one_scheme(exported):
    """Its weights in one format are the run's, and those in another are far from them."""
    from transformers import MixtralForCausalLM

    run, plan, assignment, line = exported
    said = "unpacks the experts of all layers by one scheme, whatever theirs is; for it hold all" in line
    directory = run.path / "exports" / "compressed_tensors"
    loaded = MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
    variants, off = open_variants(run, plan), []
    for group in plan.space.groups:
        for name, weight in variants.quantized(group, assignment[group.name]).items():
            if "experts" in name:
                difference = loaded.get_parameter(name).detach() - weight
                off.append(float(difference.norm() / weight.norm()))
    assert min(off) < 0.01 and said == (max(off) > 0.1)
    assert said == (plan.config.target == "transformers")  # the experts of the other take one format here


def test_an_engine_finds_one_scheme_for_the_experts_of_each_layer(exported):
    """vLLM asks for the scheme of `.0.gate_proj` and so on, whatever the files call them, and takes one a layer."""
    run, plan, assignment, _ = exported
    values = json.loads((run.path / "exports/compressed_tensors/config.json").read_text())[
        "quantization_config"
    ]
    vllm = plan.config.target == "vllm"
    groups = [g.name for g in plan.space.groups if "experts" in g.name]
    assert groups == [
        f"model.layers.{layer}.mlp.{name}"
        for layer in range(2)
        for name in (
            ["{experts.gate_up_proj,experts.down_proj}"]
            if vllm
            else ["experts.gate_up_proj", "experts.down_proj"]
        )
    ]

    def bits_of(name: str) -> list[int]:
        return [
            group["weights"]["num_bits"]
            for group in values["config_groups"].values()
            if any(re.match(t[3:], name) if t.startswith("re:") else t == name for t in group["targets"])
        ]

    for layer in range(2):
        stem = f"model.layers.{layer}.block_sparse_moe.experts"
        wanted = {own: bits_of(f"{stem}.0.{own}") for own in ("w1", "w3", "w2")}
        assert all(len(found) == 1 for found in wanted.values()) and wanted["w1"] == wanted["w3"]
        if vllm:
            [group] = [name for name in groups if f".{layer}." in name]
            assert all(found == [int(assignment[group][3:])] for found in wanted.values())
            assert all(bits_of(f"{stem}.0.{own}_proj") == wanted["w1"] for own in ("gate", "up", "down"))
        skipped = [
            re.compile(n[3:]) if n.startswith("re:") else re.compile(re.escape(n) + "$")
            for n in values["ignore"]
        ]
        assert not any(pattern.match(name) for pattern in skipped for name in (stem, f"{stem}.1.w2"))
        assert any(pattern.match(f"model.layers.{layer}.block_sparse_moe.gate") for pattern in skipped)


FUSED = {
    "GptOss": ("mlp", "gate_proj up_proj down_proj", (slice(0, None, 2), slice(1, None, 2))),
    "Llama4": ("feed_forward", "gate_proj up_proj down_proj", (slice(0, 96), slice(96, None))),
    "GraniteMoe": ("block_sparse_moe", "w1 w3 w2", (slice(0, 96), slice(96, None))),
}
"""{family that transformers saves in one tensor: where, layers in packed files, rows of gate and up}."""


@pytest.fixture(scope="module", params=FUSED)
def fused(request, tmp_path_factory):
    """A run of such a family, whose layers take formats by turns, and the same streamed."""
    folder = tmp_path_factory.mktemp(request.param)
    config = {"formats": ["int4", "int5", "int8"], "quantizer": {"group_size": 32}, "objective": "kl"}
    run, plan = plan_run(folder, with_bytes(request.param), **config)
    streamed = RunDir(folder / "streamed" / "run")
    assignment = solve_by_turns(run, plan)
    shutil.copytree(run.path, streamed.path)
    values = read_json(streamed.plan_path, "")
    values["config"]["model"]["stream"] = True
    write_json(streamed.plan_path, values)
    return request.param, run, plan, assignment, streamed


def with_bytes(family: str):
    """The small random model of a family, on bytes."""
    recipe = FAMILIES[family]
    return make_model(type(recipe)(recipe.architecture, {**recipe.settings, "vocab_size": 256}))


@torch.no_grad()
def test_experts_of_one_tensor_are_layers_as_engines_look_for_them(fused):
    """Codes times scales are the rows of the rounded weight that a layer has, exactly, and so are biases."""
    family, run, plan, assignment, _ = fused
    inside, layers, halves = FUSED[family]
    assert "verified: compressed-tensors" in export(run, "compressed_tensors")
    tensors = load_file(run.path / "exports/compressed_tensors/model.safetensors")
    variants = open_variants(run, plan)
    rounded, bits = {}, {}
    for group in plan.space.groups:
        rounded |= variants.quantized(group, assignment[group.name])
        bits |= {member.parameter: int(assignment[group.name][3:]) for member in group.members}
    own = zip(
        ("gate_up_proj", "gate_up_proj", "down_proj"), layers.split(), (*halves, slice(None)), strict=True
    )
    for part, layer, rows in own:
        parameter = f"model.layers.1.{inside}.experts.{part}"
        for expert in range(4):
            stem = f"model.layers.1.{inside}.experts.{expert}.{layer}"
            weight_MK = rounded[parameter][expert]
            expected_MK = (weight_MK if family == "GraniteMoe" else weight_MK.T)[rows]
            codes_MK = unpacked(tensors[f"{stem}.weight_packed"], bits[parameter], expected_MK.shape[1])
            scale_MK = tensors[f"{stem}.weight_scale"].float().repeat_interleave(32, 1)
            assert torch.equal(codes_MK * scale_MK, expected_MK)
            if family == "GptOss":
                bias_M = variants.model.get_parameter(f"{parameter}_bias")[expert, rows]
                assert torch.equal(tensors[f"{stem}.bias"].float(), bias_M)
    assert not any(name.endswith(("experts.gate_up_proj", "linear.weight", "_bias")) for name in tensors)


def test_it_is_said_where_transformers_itself_does_not_find_the_experts(fused):
    """It loads the rest, and random numbers in their place."""
    import transformers

    family, run, _, _, _ = fused
    line = export(run, "compressed_tensors")
    lost = re.findall(r"does not find them and loads random ones \(first (\S+)\); for it export", line)
    made = getattr(transformers, FAMILIES[family].architecture)
    _, info = made.from_pretrained(run.path / "exports/compressed_tensors", output_loading_info=True)
    assert len(lost) == (family != "Llama4")  # whose experts it makes a list of, to load them
    assert info["missing_keys"].issuperset(lost) and bool(lost) == bool(info["missing_keys"])
    assert "not for transformers" not in export(run, "fake_quantized")
    _, info = made.from_pretrained(run.checkpoint_path, output_loading_info=True)
    assert not info["missing_keys"]


def test_streamed_experts_are_those_of_a_model_in_memory(fused):
    """In packed files, and in such as the original's, each of which is read back."""
    _, run, _, _, streamed = fused
    for name, place in (
        ("compressed_tensors", "exports/compressed_tensors"),
        ("fake_quantized", "checkpoint"),
    ):
        lines = [export(each, name) for each in (run, streamed)]
        assert all("verified" in line and "not verified" not in line for line in lines)
        found, expected = (load_file(each.path / place / "model.safetensors") for each in (streamed, run))
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key].view(torch.uint8), tensor.view(torch.uint8)), key


def test_experts_in_the_wrong_order_are_found(fused, monkeypatch):
    """By the reader that fuses what compressed-tensors unpacks."""
    _, run, _, _, streamed = fused
    unpack = decompressed.unpacked

    def swapped(layer, parts, schemes, dtype):
        if layer.endswith(("experts.2.down_proj", "experts.2.w2")):
            return unpack(layer, parts, schemes, dtype).flip(0)
        return unpack(layer, parts, schemes, dtype)

    monkeypatch.setattr(decompressed, "unpacked", swapped)
    for each in (run, streamed):
        with pytest.raises(NotReproduced, match="experts"):
            export(each, "compressed_tensors")
