"""A Hugging Face checkpoint in ModelOpt's layout, which TensorRT-LLM, SGLang and vLLM read: fp4 and fp8 on NVIDIA.

`hf_quant_config.json` (and `quantization_config` of `config.json`) names an algorithm for every quantized layer.
Source: `modelopt/torch/export/quant_utils.py` and `convert_hf_config.py` of nvidia-modelopt 0.47.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmpq.export.compressed_schemes import e8m0, fp8_codes, pack_fp4
from hpcmpq.export.compressed_tensors import ignored, matrices
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.kept_tensors import say_kept
from hpcmpq.export.refusal import held_by_target, refuse_choices, refuse_formats
from hpcmpq.export.rewritten_files import check_rewritable, original_directory, rewrite
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers.activations import input_scale
from hpcmpq.space import Group, Member
from hpcmpq.store.json_files import write_json
from hpcmpq.targets import TARGETS

ALGORITHMS: dict[str, dict[str, Any]] = {
    "fp8_e4m3": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
    "fp8_block": {"quant_algo": "FP8_PB_WO"},
    "mxfp8": {"quant_algo": "MXFP8", "group_size": 32},
    "nvfp4": {"quant_algo": "NVFP4", "group_size": 16},
    "nvfp4a16": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
}

SGLANG = ("NVFP4", "W4A16_NVFP4")
"""The algorithms that SGLang 0.5.23 reads from this layout; of others in a mix it loads codes without their scales."""

PRODUCER = {"name": "modelopt", "version": "0.47.0"}
"""Whose layout it is: engines look for this name."""


_TARGET = TARGETS["tensorrt_llm"]


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write the checkpoint.

    Raises:
        UserError: If the model is no Hugging Face directory, or a layer or its format cannot be held.
    """
    path, original, dtype = original_directory(plan)
    refuse_formats("modelopt", plan, assignment, _TARGET.formats, _TARGET.name)
    refuse_choices(held, ExportSubject(plan.config, plan.space, variants.model), assignment)
    chosen = {m: assignment[g.name] for g in plan.space.groups for m in g.members}
    members = {member.parameter: member for member in chosen}
    done = rewrite(
        "modelopt",
        variants,
        path,
        directory,
        members,
        lambda part: stored(variants, part.member, chosen[part.member]),
        dtype,
    )
    layers = {
        member.parameter.removesuffix(".weight"): ALGORITHMS[name]
        for member, name in chosen.items()
        if FORMATS[name].scaled
    }
    settings = quantization(layers, ignored(variants.model, matrices(directory), layers))
    write_json(directory / "hf_quant_config.json", {"producer": PRODUCER, "quantization": settings})
    in_config = {
        "quant_method": "modelopt",
        "producer": PRODUCER,
        **{key: value for key, value in settings.items() if key != "exclude_modules"},
        "ignore": settings["exclude_modules"],
    }
    write_json(directory / "config.json", {**original, "quantization_config": in_config}, allow_nan=True)
    strange = sorted({each["quant_algo"] for each in layers.values()} - set(SGLANG))
    notes = [f"not for SGLang, which has no place for scales of {', '.join(strange)}"] if strange else []
    return Written(
        "checkpoint in ModelOpt's layout",
        (*say_kept(done.kept), *notes),
        unreadable="its engines need a GPU",
    )


def check(subject: ExportSubject) -> None:
    """Refuse a model that no such checkpoint holds."""
    check_rewritable("modelopt", subject)


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """Those of a group's formats that the checkpoint holds."""
    return held_by_target("modelopt holds linear layers only", _TARGET, subject, group, names)


def quantization(layers: Mapping[str, Mapping[str, Any]], kept: list[str]) -> dict[str, Any]:
    """`quantization` of `hf_quant_config.json`: every layer's algorithm, or the one of all of them."""
    used = {tuple(sorted(algorithm.items())) for algorithm in layers.values()}
    # Its patterns are those of shells.
    excluded = sorted(name.removeprefix("re:").replace(r"\.", ".").replace(".*", "*") for name in kept)
    values = {"kv_cache_quant_algo": None, "exclude_modules": excluded}
    if len(used) == 1:
        return {**dict(next(iter(used))), **values}
    if not used:
        return {"quant_algo": None, **values}
    return {
        "quant_algo": "MIXED_PRECISION",
        **values,
        "quantized_layers": {n: dict(a) for n, a in layers.items()},
    }


def stored(variants: Variants, member: Member, format_name: str) -> dict[str, Tensor]:
    """The tensors that stand for a weight."""
    format, name = FORMATS[format_name], member.parameter
    codes_MK, qparams = variants.encoded(member, format_name)
    codes_MK = codes_MK.contiguous()
    if not format.scaled:
        return {name: codes_MK.reshape(variants.model.get_parameter(name).shape)}
    if format.scales == "e8m0":
        return {name: codes_MK, f"{name}_scale": e8m0(qparams.scale)}
    scale_RS = qparams.scale.to(torch.float32)
    if qparams.global_scale is not None:
        common = qparams.global_scale.to(torch.float32)
        packed = {name: pack_fp4(codes_MK), f"{name}_scale": fp8_codes(qparams)}
        tensors = {**packed, f"{name}_scale_2": common.clone()}
        if format.static_inputs:
            found = input_scale(variants.activations.maximum(member))
            tensors[f"{name.removesuffix('.weight')}.input_scale"] = torch.tensor(found, dtype=torch.float32)
        return tensors
    if format.block is not None:
        return {name: codes_MK, f"{name}_scale": scale_RS[:, None, :, None].contiguous()}
    return {name: codes_MK, f"{name}_scale": scale_RS[:, 0].contiguous()}
