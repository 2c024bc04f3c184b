"""A GGUF file with a type of its own for every tensor, for llama.cpp and what is built on it.

int4, int5 and int8 become Q4_0, Q5_0 and Q8_0, formats of ggml their own types, bit for bit the same weights. All
experts of a layer are one tensor for each projection.
Vocabularies are not converted: a file `vocab.gguf` in the model's directory, as llama.cpp's `convert_hf_to_gguf.py
--vocab-only` writes it, is copied in; without one the file takes token ids only.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.export.gguf_blocks import num_rounded, to_blocks
from hpcmpq.export.gguf_metadata import frequency_factors, metadata
from hpcmpq.export.gguf_places import GGUFPlace, places_of
from hpcmpq.export.gguf_super_blocks import to_super_blocks
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.export.kept_tensors import say_left_out
from hpcmpq.export.refusal import refuse_choices, refuse_formats
from hpcmpq.export.streamed_files import tensors_in_turn
from hpcmpq.export.written import Written, holds
from hpcmpq.formats import FORMATS
from hpcmpq.models.gguf_config import check_describable, context_length, resolved_config
from hpcmpq.models.gguf_source import FACTORS
from hpcmpq.models.layer_kinds import are_experts
from hpcmpq.models.stored_dtype import stored_dtype, wider_dtypes
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Group, Member
from hpcmpq.targets import TARGETS, narrowed
from hpcmpq.targets.llama_cpp import GGUF_ARCHITECTURES, GGUF_TYPES, VOCABULARY

QWEN3_HEAD = 128

_TARGET = TARGETS["llama_cpp"]
_WITHOUT_GGUF = "the gguf export needs the package gguf; pip install 'hpcmpq[export]'"

_log = logging.getLogger(__name__)


def export(plan: Plan, variants: Variants, assignment: Mapping[str, str], directory: Path) -> Written:
    """Write `model.gguf`.

    Raises:
        UserError: If the architecture, a format or the quantizer is not one that GGUF can hold.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(_WITHOUT_GGUF) from None
    path = Path(str(plan.config.model.path))
    refuse_formats("gguf", plan, assignment, _TARGET.formats, _TARGET.name)
    refuse_choices(held, ExportSubject(plan.config, plan.space, variants.model), assignment)
    model_config = resolved_config(path).to_dict()  # with the defaults of its class
    architecture, stored = GGUF_ARCHITECTURES[model_config["model_type"]], stored_dtype(plan.config.model)
    chosen = {m.parameter: (m, assignment[g.name]) for g in plan.space.groups for m in g.members}
    names = _names(gguf, architecture, model_config)
    wider = wider_dtypes(variants.model, str(path), stored)
    experts = any(are_experts(module) for module in variants.model.modules())
    exact = True
    rounded = 0
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it reports the byte order and temporary names
    # A temporary file keeps the tensors of a streamed model: the sizes of all come first in the file.
    streamed = variants.streamed
    writer = gguf.GGUFWriter(directory / "model.gguf", architecture, use_temp_file=streamed is not None)
    for key, value in metadata(architecture, model_config):
        getattr(writer, f"add_{key}")(value)
    vocabulary = path / VOCABULARY
    if vocabulary.exists():
        _copy_vocabulary(gguf, writer, vocabulary)
    else:
        writer.add_tokenizer_model("none")
    factors_F = frequency_factors(model_config)
    if factors_F is not None:
        writer.add_tensor(FACTORS, factors_F)
    for name, tensor in _whole(variants.model) if streamed is None else tensors_in_turn(streamed):
        places = places_of(name, tensor, names, architecture, model_config)
        if name in chosen:
            rounded += _add_quantized(gguf, writer, places, variants, *chosen[name])
            continue
        for place in places:
            dtype = _written_dtype(place, tensor, wider.get(name, stored))
            exact = exact and holds(tensor, dtype)
            _add_plain(gguf, writer, place.name, place.of(tensor).to(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    notes = [] if vocabulary.exists() else ["without a vocabulary"]
    notes += [f"{rounded} scales rounded to float16"] if rounded else []
    notes += say_left_out(variants.model, path)
    return Written(
        "GGUF file model.gguf",
        tuple(notes),
        reader="gguf_tensors" if factors_F is not None or experts else None,
        unreadable=_unreadable(model_config),
        narrowed=torch.bfloat16 if not exact else torch.float16 if rounded else None,
        max_positions=context_length(model_config),
    )


def check(subject: ExportSubject) -> None:
    """Refuse a model that llama.cpp computes otherwise, or has no place for a tensor of.

    Where the package gguf, which knows the places, is not installed, they are looked at by the export only.
    """
    if subject.config.model.path is None:
        raise UserError("gguf needs a Hugging Face directory in model.path")
    path = Path(str(subject.config.model.path))
    check_describable(_TARGET, path)
    try:
        import gguf
    except ImportError:
        if subject.config.target is not None:
            _log.warning(
                "without the package gguf (pip install 'hpcmpq[export]') only the export sees whether llama.cpp has a "
                "place for every tensor"
            )
        return
    values = resolved_config(path).to_dict()
    architecture = GGUF_ARCHITECTURES[values["model_type"]]
    names = _names(gguf, architecture, values)
    for name, tensor in subject.model.state_dict().items():
        places_of(name, tensor, names, architecture, values)


def held(subject: ExportSubject, group: Group, names: Sequence[str]) -> tuple[str, ...]:
    """Those of a group's formats that the file holds, of a layer of any kind that has a place there."""
    [kept] = narrowed(_TARGET, [group], names, subject.config.quantizer)
    return kept


def _names(gguf: Any, architecture: str, values: Mapping[str, Any]) -> Any:
    """The package's map of names of an architecture."""
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    return gguf.get_tensor_name_map(number, values["num_hidden_layers"])


def _whole(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a model in memory; a head tied to the embedding is not there twice."""
    seen = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def _unreadable(values: Mapping[str, Any]) -> str | None:
    if values["model_type"] == "qwen3" and values["head_dim"] != QWEN3_HEAD:
        return f"transformers reads heads of every Qwen3 as {QWEN3_HEAD} wide, llama.cpp as they are"
    return None


def _add_quantized(
    gguf: Any, writer: Any, places: Sequence[GGUFPlace], variants: Variants, member: Member, format_name: str
) -> int:
    """Add a weight as blocks; how many of its scales float16 does not hold."""
    format = FORMATS[format_name]
    codes_MK, qparams = variants.encoded(member, format_name)
    kind = getattr(gguf.GGMLQuantizationType, GGUF_TYPES[format_name])
    if not format.scaled:
        blocks_MB = _bytes_of(codes_MK)
    elif format.type == "ggml":
        blocks_MB = to_super_blocks(codes_MK, qparams, format)
    else:
        blocks_MB = to_blocks(codes_MK, qparams.scale, format.num_bits)
    for place in places:
        writer.add_tensor(place.name, place.rows(blocks_MB), raw_dtype=kind)
    return num_rounded(qparams.scale) if format.scaled and format.type != "ggml" else 0


def _written_dtype(place: GGUFPlace, tensor: Tensor, stored: torch.dtype | None) -> torch.dtype:
    """As the model's directory stores it; vectors and routers, which llama.cpp wants so, in float32."""
    if tensor.ndim == 1 or place.is_router or stored not in (torch.bfloat16, torch.float16):
        return torch.float32
    return stored


def _add_plain(gguf: Any, writer: Any, place: str, tensor: Tensor) -> None:
    if tensor.dtype == torch.bfloat16:
        writer.add_tensor(place, _bytes_of(tensor), raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(place, tensor.cpu().numpy())


def _bytes_of(matrix: Tensor) -> np.ndarray:
    return matrix.contiguous().cpu().view(torch.uint8).numpy()


def _copy_vocabulary(gguf: Any, writer: Any, path: Path) -> None:
    for field in gguf.GGUFReader(path).fields.values():
        if field.name.startswith("tokenizer."):
            kinds: Sequence[Any] = field.types
            inner = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kinds[0], inner)
