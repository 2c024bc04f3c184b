"""Experts that transformers keeps in one tensor, in checkpoints that hold them one by one."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from hpcmpq.export import export, weight_bytes
from hpcmpq.quantized.variants import open_variants
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
