"""Reading back what `tool_configs` wrote: that every file gives every layer the bits of the assignment."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from hpcmpq.errors import NotReproduced
from hpcmpq.export.verification import Verification
from hpcmpq.formats import FORMATS
from hpcmpq.models.description import read_model_json
from hpcmpq.plan import Plan

PLAIN = 16
"""Bits of what stays as it is."""


def check_tool_configs(plan: Plan, assignment: Mapping[str, str], directory: Path) -> Verification:
    """Compare every file that is there with the assignment, layer by layer.

    Raises:
        NotReproduced: Naming the first layer that a file gives other bits.
    """
    formats = {
        member.parameter.removesuffix(".weight"): assignment[group.name]
        for group in plan.space.groups
        for member in group.members
    }
    bits = {
        layer: FORMATS[name].num_bits if FORMATS[name].scaled else PLAIN for layer, name in formats.items()
    }
    num_files = 0
    for name, read in _READERS.items():
        if not (directory / name).exists():
            continue
        found = read((directory / name).read_text(encoding="utf-8"), plan, tuple(bits))
        # llama.cpp has no type of 7 bits.
        wanted = {k: 8 if b == 7 else b for k, b in bits.items()} if name == "llama_quantize.txt" else bits
        if differ := [layer for layer in {**wanted, **found} if found.get(layer) != wanted.get(layer)]:
            raise NotReproduced(
                f"{name} gives {differ[0]} {found.get(differ[0])} bits, the assignment {wanted.get(differ[0])}; "
                "nothing of the tool_configs export is kept, please report this"
            )
        num_files += 1
    if not num_files:
        return Verification(None, "no tool takes this assignment")
    return Verification(f"{num_files} files name all {len(bits)} layers with their bits")


def _auto_round(text: str, plan: Plan, layers: tuple[str, ...]) -> dict[str, int]:
    return {name: values["bits"] for name, values in json.loads(text).items()}


def _gptqmodel(text: str, plan: Plan, layers: tuple[str, ...]) -> dict[str, int]:
    """GPTQModel takes the first rule whose pattern matches; those with a minus leave a layer as it is."""
    rules = json.loads(text)
    found = {}
    for layer in layers:
        rule = next((rule for rule in rules if re.match(rule[2:], layer)), None)
        if rule is not None:
            found[layer] = PLAIN if rule.startswith("-:") else rules[rule]["bits"]
    return found


def _llm_compressor(text: str, plan: Plan, layers: tuple[str, ...]) -> dict[str, int]:
    modifier = json.loads(text)["quant_stage"]["quant_modifiers"]["GPTQModifier"]
    found = {layer: PLAIN for layer in modifier["ignore"] if layer in layers}
    for group in modifier["config_groups"].values():
        found |= dict.fromkeys(group["targets"], group["weights"]["num_bits"])
    return found


def _llama_quantize(text: str, plan: Plan, layers: tuple[str, ...]) -> dict[str, int]:
    """llama-quantize searches its own tensors' names for the patterns."""
    import gguf

    values = read_model_json(Path(str(plan.config.model.path)))
    kind = {"mistral": "llama"}.get(values["model_type"], values["model_type"])
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, values["num_hidden_layers"])
    lines = [line.rpartition("=") for line in text.splitlines()]
    found = {}
    for layer in layers:
        place = f"{names.get_name(layer)}.weight"
        kinds = [kind for pattern, _, kind in lines if re.search(pattern, place)]
        if len(kinds) == 1:
            [digits] = re.findall(r"^\D+(\d+)", kinds[0])
            found[layer] = int(digits)
    return found


_READERS: dict[str, Callable[[str, Plan, tuple[str, ...]], dict[str, int]]] = {
    "auto_round.json": _auto_round,
    "gptqmodel.json": _gptqmodel,
    "llm_compressor.yaml": _llm_compressor,
    "llama_quantize.txt": _llama_quantize,
}
