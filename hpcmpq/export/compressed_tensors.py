"""A Hugging Face checkpoint with per-layer `compressed-tensors` configuration: transformers and vLLM load it.

Integer formats are stored `pack-quantized`: codes of b bits packed densely, 32 of them in b words, beside
their scales. fp8 is `float-quantized` with inputs rounded per token, or per block of them, while running; fp4 and
mxfp8 have layouts of their own, see `compressed_schemes.py`. bf16 and whatever is not searched is stored as it is.
Layout: compressed-tensors 0.18 and later (before, only 4 and 8 bits are dense).
Zero points, packed along outputs, are for vLLM: transformers 5.23 builds modules for unpacked ones and then rejects
packed ones, so compressed-tensors alone reads such checkpoints back.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.export.compressed_schemes import input_global_scale, scheme, stored
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.kept_tensors import say_kept
from hpcmpq.export.loadable import is_unpacked_alone, not_for_transformers, not_loaded
from hpcmpq.export.refusal import held_by_target, refuse_choices, refuse_formats
from hpcmpq.export.rewritten_files import (
    StoredPart,
    check_rewritable,
    original_directory,
    parts_of,
    rewrite,
)
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.deployable import saved_one_by_one
from hpcmpq.models.stored_headers import stored_tensors
from hpcmpq.models.stored_weights import tensors_in
from hpcmpq.models.weights import from_matrix
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.settings import Config
from hpcmpq.space import Group, Member
from hpcmpq.store.json_files import write_json
from hpcmpq.targets import TARGETS, Target

_EXPERT = re.compile(r"(\.experts)\.\d+\.(\w+)$")
"""An expert's layer, one by one as files have them."""


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write the checkpoint; every layer's decompressed weight is exactly the quantizer's.

    Raises:
        UserError: If the model is no Hugging Face directory, or a layer or its format cannot be held.
    """
    path, original, stored_dtype = original_directory(plan)
    chosen = {m: assignment[g.name] for g in plan.space.groups for m in g.members}
    subject = ExportSubject(plan.config, plan.space, variants.model)
    refuse_formats(
        "compressed_tensors", plan, assignment, _target(plan.config).formats, _target(plan.config).name
    )
    refuse_choices(held, subject, assignment)
    done = rewrite(
        "compressed_tensors",
        variants,
        path,
        directory,
        {member.parameter: member for member in chosen},
        _storing(variants, chosen),
        stored_dtype,
    )
    parts = {part.layer: chosen[member] for member in chosen for part in parts_of(variants.model, member)}
    config = quantization_config(variants.model, parts, variants.quantizer, matrices(directory))
    # transformers writes and reads infinite limits, as of the time steps of Mamba 2.
    write_json(directory / "config.json", {**original, "quantization_config": config}, allow_nan=True)
    formats = {member: (name,) for member, name in chosen.items()}
    alone = is_unpacked_alone(variants.model, variants.quantizer)
    return Written(
        "compressed-tensors checkpoint",
        (*say_kept(done.kept), *not_for_transformers(variants.model, formats)),
        reader="decompressed" if alone else None,
        unreadable=not_loaded(variants.model, variants.quantizer, formats),
        rounding=tuple({"fp8_e4m3"} & set(chosen.values())),
        narrowed=None if done.exact else stored_dtype,
    )


def check(subject: ExportSubject) -> None:
    """Refuse a model that no such checkpoint holds."""
    check_rewritable("compressed_tensors", subject)


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """Those of a group's formats that the checkpoint holds."""
    return held_by_target(
        "compressed_tensors holds linear layers only", _target(subject.config), subject, group, names,
        "fake_quantized or tool_configs", saved_one_by_one,
    )  # fmt: skip


def quantization_config(
    model: nn.Module, chosen: Mapping[str, str], quantizer: Quantizer, in_files: Iterable[str] = ()
) -> dict[str, Any]:
    """The value of `quantization_config` in `config.json`: one group of layers for each format in use.

    Args:
        model: The original.
        chosen: {layer in the files: format} of all that is searched, experts one by one.
        quantizer: How weights are rounded.
        in_files: Names of all tensors of two axes and more in the checkpoint's files.
    """
    layers: dict[str, list[str]] = {}
    for layer, name in chosen.items():
        if FORMATS[name].scaled:
            layers.setdefault(name, []).append(layer)
    groups = {
        f"group_{index}": {"targets": targets_of(layers[name], chosen), **scheme(FORMATS[name], quantizer)}
        for index, name in enumerate(sorted(layers))
    }
    quantized = {layer for names in layers.values() for layer in names}
    kinds = sorted({group["format"] for group in groups.values()})
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": kinds[0] if len(kinds) == 1 else "mixed-precision" if kinds else "dense",
        "config_groups": groups,
        "ignore": ignored(model, in_files, quantized),
    }


def ignored(model: nn.Module, in_files: Iterable[str], quantized: Collection[str]) -> list[str]:
    """Names of all that holds a weight of two axes or more that is not quantized.

    vLLM asks for a scheme of every layer that is not listed, and what it makes a linear layer of need not be one in
    transformers: routers, convolutions, heads that predict several tokens. It knows layers by the names in the files,
    which are not always the model's, and experts one by one, in whatever shape they are stored.
    """
    parameters = model.named_parameters(remove_duplicate=False)
    names = {name.rpartition(".")[0] for name, parameter in parameters if parameter.ndim > 1}
    names |= {name.rpartition(".")[0] for name in in_files}
    names -= {"", *quantized}
    names -= {
        name
        for name in names
        if name.endswith(".experts") and any(q.startswith(f"{name}.") for q in quantized)
    }
    experts = {name[: found.end()] for name in names if (found := re.search(r"\.experts\b", name))}
    whole = {layer for layer in experts if not any(name.startswith(f"{layer}.") for name in quantized)}
    one_by_one = {name for name in names if any(name.startswith(f"{layer}.") for layer in whole)}
    return [*sorted(names - one_by_one), *sorted(_inside(layer, quantized) for layer in whole)]


def targets_of(layers: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    """Names for a config group; one pattern for the experts of a layer, which engines ask for under names of their own.

    Args:
        layers: Of one format, experts one by one.
        chosen: {layer: format} of all.
    """
    names = [name for name in layers if not _EXPERT.search(name)]
    projections: dict[str, dict[str, None]] = {}
    for name in layers:
        if found := _EXPERT.search(name):
            projections.setdefault(name[: found.end(1)], {})[found[2]] = None
    for experts, own in projections.items():
        others = {n for n in chosen if n.startswith(f"{experts}.") and n not in layers}
        end = r"\..*" if not others else rf"\.\d+\.({'|'.join(own)})$"
        _, marked, stem = experts.rpartition("layers.")
        names.append(rf"re:.*{re.escape(marked + stem)}{end}")
    return names


def _inside(layer: str, quantized: Collection[str]) -> str:
    """A pattern of all that is inside a layer, whatever an engine puts before ``layers``; of nothing quantized."""
    _, marked, end = layer.rpartition("layers.")
    loose = rf".*{re.escape(marked + end)}\..*"
    return f"re:{re.escape(layer)}\\..*" if any(re.match(loose, n) for n in quantized) else f"re:{loose}"


def matrices(attempt: Path) -> list[str]:
    """Names of the tensors of two axes and more in a directory's files."""
    files = tensors_in(attempt)
    return [name for name, tensor in stored_tensors(attempt, files).items() if len(tensor.shape) > 1]


def _target(config: Config) -> Target:
    """The engine that the files are for."""
    return TARGETS["vllm" if config.target == "vllm" else "transformers"]


def _storing(variants: Variants, chosen: Mapping[Member, str]) -> Callable[[StoredPart], dict[str, Tensor]]:
    """What makes the tensors that stand for a weight, or for an expert's rows of one."""
    # Files name experts before projections, so two weights of a layer come by turns.
    encoded = lru_cache(2)(lambda member: variants.encoded(member, chosen[member]))

    def stored_part(part: StoredPart) -> dict[str, Tensor]:
        weight_format, member = FORMATS[chosen[part.member]], part.member
        codes_MK, qparams = encoded(member)
        if not weight_format.scaled:
            if part.rows is not None:
                return {part.name: codes_MK[part.rows].contiguous()}
            like = torch.empty_like(variants.model.get_parameter(member.parameter), device=codes_MK.device)
            return {part.name: from_matrix(codes_MK, member, like.to(codes_MK.dtype)).contiguous()}
        height = weight_format.block[0] if weight_format.block else 1
        qparams = qparams.rows(part.blocks(height))
        tensors = stored(part.name, codes_MK[part.blocks()], qparams, weight_format, variants.quantizer)
        if weight_format.static_inputs:
            tensors |= input_global_scale(part.layer, variants.activations.maximum(member))
        return tensors

    return stored_part
