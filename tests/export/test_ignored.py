"""What compressed-tensors exports tell engines not to look for a scheme of."""

import json
import re

import torch
from torch import nn

from hpcmpq.export import export
from tests.export.planned import add_stored, mixtral, plan_run, solve_by_turns

MTP = {
    "mtp.fc.weight": torch.randn(128, 256),
    "mtp.layers.0.mlp.experts.gate_up_proj": torch.randn(2, 64, 128),
    "mtp.norm.weight": torch.randn(128),
}


def matches(layer: str, entries: list[str]) -> bool:
    """As vLLM looks a layer up: equal, or by a pattern from its start."""
    return any(re.match(e[3:], layer) if e.startswith("re:") else e == layer for e in entries)


def test_every_layer_that_is_not_quantized_is_ignored(tmp_path):
    made = mixtral()
    config = {"formats": ["int4", "bf16"], "groups": {"exclude": ["*experts*"]}, "target": "vllm"}
    run, plan = plan_run(tmp_path, made, edit=lambda path: add_stored(path, MTP), **config)
    assignment = solve_by_turns(run, plan)
    export(run, "compressed_tensors")
    settings = json.loads((run.path / "exports/compressed_tensors/config.json").read_text())
    found = settings["quantization_config"]
    targets = {name for group in found["config_groups"].values() for name in group["targets"]}
    quantized = {
        member.parameter.removesuffix(".weight")
        for group in plan.space.groups
        for member in group.members
        if assignment[group.name] == "int4"
    }
    assert targets == quantized
    assert not any(matches(layer, found["ignore"]) for layer in quantized)
    for name, module in made.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and name not in quantized:
            assert matches(name, found["ignore"]), name
    # Names that vLLM asks for: routers, which are no nn.Linear; experts one by one, by the names of the files too.
    for name in (
        "model.layers.1.mlp.gate",
        "model.layers.0.mlp.experts.2.gate_proj",
        "model.layers.0.mlp.experts",
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.0.block_sparse_moe.experts.0.w1",
        "lm_head",
        "model.embed_tokens",
        "mtp.fc",
        "mtp.layers.0.mlp.experts.1.down_proj",
    ):
        assert matches(name, found["ignore"]), name
    assert len(found["ignore"]) < 30
