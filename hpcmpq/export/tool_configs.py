"""The assignment in the forms that other quantization tools take, so that they round or tune the weights.

Files, each written only where its tool has every format in use:

- `auto_round.json`: auto-round's `layer_config`;
- `gptqmodel.json`: GPTQModel's `dynamic`, regular expressions of whole layer names;
- `llm_compressor.yaml`: a recipe of llm-compressor with one config group for each format;
- `llama_quantize.txt`: llama-quantize's `--tensor-type-file`; its K types stand in for integers of as many bits.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.export.compressed_tensors import quantization_config
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.description import read_model_json
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Group, Member
from hpcmpq.targets import TARGETS
from hpcmpq.targets.llama_cpp import GGML_TYPES

LLAMA_TYPES = {
    "int2": "q2_K",
    "int3": "q3_K",
    "int4": "q4_K",
    "int5": "q5_K",
    "int6": "q6_K",
    "int7": "q8_0",
    "int8": "q8_0",
    "bf16": "bf16",
    **GGML_TYPES,
}
"""{format: type of llama-quantize, in letters of either case}; ggml's types are their own."""

GPTQ_BITS = (2, 3, 4, 8)

Chosen = Mapping[Member, str]


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write the files; a note says which tools cannot take the assignment and why."""
    chosen = {m: assignment[g.name] for g in plan.space.groups for m in g.members}
    makers: dict[str, Callable[[], str]] = {
        "auto_round.json": lambda: _auto_round(chosen, variants.quantizer),
        "gptqmodel.json": lambda: _gptqmodel(chosen, variants.quantizer),
        "llm_compressor.yaml": lambda: _llm_compressor(chosen, variants),
        "llama_quantize.txt": lambda: _llama_quantize(plan, chosen),
    }
    written, refused = [], []
    for name, make in makers.items():
        try:
            (directory / name).write_text(make(), encoding="utf-8")
            written.append(name)
        except UserError as reason:
            refused.append(f"{name} ({reason})")
    notes = (f"left out: {', '.join(refused)}",) if refused else ()
    return Written(", ".join(["assignment.json", *written]), notes)


def check(subject: ExportSubject) -> None:
    """Nothing is refused: a tool that takes no solution is left out, with a note."""


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """All formats."""
    return tuple(names)


def _auto_round(chosen: Chosen, quantizer: Quantizer) -> str:
    _refuse("auto-round", chosen, _rounds_weights_alone)
    layers = {}
    for member, name in chosen.items():
        values: dict[str, object] = {"bits": FORMATS[name].num_bits}
        if FORMATS[name].scaled:
            values |= {
                "group_size": quantizer.group_size or -1,
                "sym": quantizer.symmetric,
                "data_type": "int",
            }
        layers[_layer(member)] = values
    return json.dumps(layers, indent=2) + "\n"


def _rounds_weights_alone(name: str) -> bool:
    """Whether a format is of integers without rounded inputs, or none."""
    return name == "bf16" or (FORMATS[name].type == "int" and FORMATS[name].activation is None)


def _gptqmodel(chosen: Chosen, quantizer: Quantizer) -> str:
    def known(name: str) -> bool:
        return name == "bf16" or (_rounds_weights_alone(name) and FORMATS[name].num_bits in GPTQ_BITS)

    _refuse("GPTQModel", chosen, known)
    rules: dict[str, dict[str, object]] = {}
    for member, name in chosen.items():
        pattern = f"^{re.escape(_layer(member))}$"
        if name == "bf16":
            rules[f"-:{pattern}"] = {}
        else:
            rules[f"+:{pattern}"] = {
                "bits": FORMATS[name].num_bits,
                "group_size": quantizer.group_size or -1,
                "sym": quantizer.symmetric,
            }
    return json.dumps(rules, indent=2) + "\n"


def _llm_compressor(chosen: Chosen, variants: Variants) -> str:
    target = TARGETS["vllm"]
    layers = {_layer(member): name for member, name in chosen.items()}
    _refuse("llm-compressor", chosen, lambda name: name in target.formats)
    config = quantization_config(variants.model, layers, variants.quantizer)
    groups = {
        name: {key: value for key, value in group.items() if key != "format"}
        for name, group in config["config_groups"].items()
    }
    modifier = {"config_groups": groups, "ignore": config["ignore"]}
    recipe = {"quant_stage": {"quant_modifiers": {"GPTQModifier": modifier}}}
    return json.dumps(recipe, indent=2) + "\n"  # which is YAML too


def _llama_quantize(plan: Plan, chosen: Chosen) -> str:
    try:
        import gguf
    except ImportError:
        raise UserError("needs the package gguf; pip install 'hpcmpq[export]'") from None
    _refuse("llama-quantize", chosen, lambda name: name in LLAMA_TYPES)
    path = plan.config.model.path
    values = read_model_json(Path(path)) if path else {}
    architectures = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    kind = {"mistral": "llama"}.get(values.get("model_type", ""), values.get("model_type"))
    if kind not in architectures or "num_hidden_layers" not in values:
        raise UserError(f"llama.cpp has no architecture {kind!r}")
    names = gguf.get_tensor_name_map(architectures[kind], values["num_hidden_layers"])
    lines = []
    for member, name in chosen.items():
        place = names.get_name(member.parameter, try_suffixes=(".weight",))
        if place is None:
            raise UserError(f"llama.cpp has no place for {member.parameter}")
        lines.append(f"^{re.escape(place)}$={LLAMA_TYPES[name]}\n")
    return "".join(lines)


def _layer(member: Member) -> str:
    if not member.parameter.endswith(".weight"):
        raise UserError(f"layers are named by module and {member.parameter} is no module's weight")
    return member.parameter.removesuffix(".weight")


def _refuse(tool: str, chosen: Chosen, known: Callable[[str], bool]) -> None:
    if unknown := sorted({name for name in chosen.values() if not known(name)}):
        raise UserError(f"{tool} has no {', '.join(unknown)}")
