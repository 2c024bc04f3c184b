"""A directory for mlx-lm, Apple's engine: per-layer formats in `quantization` of `config.json`.

A layer of b bits is `weight`, codes in dense bit fields as uint32 [M, K·b / 32], `scales` [M, K / group size] and
`biases`, weight = scale · code + bias: a symmetric grid has the bias −2^(b−1) · scale, exactly. mxfp4 has `scales` of
e8m0 and no biases. Source: `mlx_lm/utils.py` (`load_model`) and `mlx/ops.cpp` (`quantize`), mlx-lm 0.32.2, mlx 0.32.4.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.export.compressed_schemes import e8m0, narrow_exactly, pack_fp4
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.refusal import held_by_target, refuse_choices, refuse_formats
from hpcmpq.export.rewritten_files import check_rewritable, original_directory, rewrite
from hpcmpq.export.written import Written
from hpcmpq.formats import FORMATS, Format, Quantizer
from hpcmpq.models.gguf_config import check_describable, context_length, resolved_config
from hpcmpq.models.mlx_config import READ
from hpcmpq.models.stored_weights import unused_tensors
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import code_limits
from hpcmpq.quantizers.packing import pack
from hpcmpq.space import Group, Member
from hpcmpq.store.json_files import write_json
from hpcmpq.targets import TARGETS

_TARGET = TARGETS["mlx"]


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write the directory.

    Raises:
        UserError: If the model is no Hugging Face directory, or the engine cannot hold it, a layer or its format.
    """
    path, original, dtype = original_directory(plan)
    refuse_formats("mlx", plan, assignment, _TARGET.formats, _TARGET.name)
    refuse_choices(held, ExportSubject(plan.config, plan.space, variants.model), assignment)
    chosen = {m: assignment[g.name] for g in plan.space.groups for m in g.members}
    quantizer = variants.quantizer

    def stand_for(member: Member) -> dict[str, Tensor]:
        codes_MK, qparams = variants.encoded(member, chosen[member])
        return stored(member.parameter, codes_MK, qparams, FORMATS[chosen[member]], quantizer, dtype)

    members = {member.parameter: member for member in chosen}
    done = rewrite("mlx", variants, path, directory, members, lambda part: stand_for(part.member), dtype)
    layers = {
        member.parameter.removesuffix(".weight"): scheme(FORMATS[name], quantizer)
        for member, name in chosen.items()
        if FORMATS[name].scaled
    }
    resolved = resolved_config(path).to_dict()
    read = {key: resolved[key] for key in READ if resolved.get(key) is not None}
    values = {**read, **original, **positions(resolved)}
    length = context_length(resolved)
    notes = []
    if length < resolved["max_position_embeddings"]:
        values["max_position_embeddings"] = length
        notes.append(f"mlx-lm has no sliding window: it is the original's model up to {length:,} tokens")
    if layers:
        [(usual, _)] = Counter(tuple(each.items()) for each in layers.values()).most_common(1)
        values["quantization"] = {**dict(usual), **layers}
    write_json(directory / "config.json", values, allow_nan=True)
    return Written(
        "MLX directory", tuple(notes), narrowed=None if done.exact else dtype, max_positions=length
    )


def check(subject: ExportSubject) -> None:
    """Refuse a model that the engine computes otherwise, or whose files hold more than it takes."""
    if subject.config.model.path is not None:
        check_describable(_TARGET, Path(subject.config.model.path))
    check_rewritable("mlx", subject)
    path = Path(str(subject.config.model.path))
    if unused := unused_tensors(subject.model, path):
        raise UserError(
            f"mlx-lm takes no tensors that the model does not use, such as {min(unused)}; plan from a copy of the "
            "model's directory without them"
        )


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """Those of a group's formats that the directory holds."""
    return held_by_target("mlx holds linear layers only here", _TARGET, subject, group, names)


def scheme(format: Format, quantizer: Quantizer) -> dict[str, Any]:
    """What `mlx.nn.quantize` takes for a layer."""
    if format.type == "int":
        return {"group_size": quantizer.group_size, "bits": format.num_bits, "mode": "affine"}
    return {"group_size": 32, "bits": 4, "mode": "mxfp4"}


def positions(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which mlx-lm reads, of the `rope_parameters` that transformers 5 writes.

    Example:
        >>> positions({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}})
        {'rope_theta': 100000.0, 'rope_scaling': None}
    """
    given = config.get("rope_parameters")
    if given is None:
        return {}
    rest = {key: value for key, value in given.items() if key != "rope_theta"}
    scaled = rest.get("rope_type", "default") != "default"
    return {"rope_theta": given["rope_theta"], "rope_scaling": rest if scaled else None}


def stored(
    name: str,
    codes_MK: Tensor,
    qparams: QParams,
    format: Format,
    quantizer: Quantizer,
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """The tensors that stand for a weight called `name`, ending in ``.weight``.

    Scales are in the `dtype` of all else if that holds them: of two halves MLX would compute in float32.
    """
    layer = name.removesuffix(".weight")
    if not format.scaled:
        return {name: codes_MK.contiguous()}
    if format.type == "int":
        lowest, _ = code_limits(format, quantizer)
        pair = torch.stack([qparams.scale, qparams.scale * lowest])
        scale_MS, bias_MS = (each.contiguous() for each in narrow_exactly(pair, dtype))
        words_MW = pack(codes_MK, format.num_bits, lowest)
        return {
            name: words_MW.view(torch.uint32),
            f"{layer}.scales": scale_MS,
            f"{layer}.biases": bias_MS,
        }
    return {
        name: pack_fp4(codes_MK).contiguous().view(torch.uint32),
        f"{layer}.scales": e8m0(qparams.scale),
    }
