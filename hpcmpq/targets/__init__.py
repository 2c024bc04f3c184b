"""Inference engines: which formats each can hold, what must share one, and the bytes of its files.

A config that names a target is narrowed to what its engine loads before anything is measured, so that every
solution can be deployed, and `size_bytes` counts the bytes of the engine's own weight file. To add a target: one
entry in `TARGETS` and an exporter in `hpcmpq.export.EXPORTERS` that refuses whatever the entry does not promise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, Format, Quantizer
from hpcmpq.space import Group, Member
from hpcmpq.tables import look_up
from hpcmpq.targets.file_bytes import (
    GGUF_BLOCK,
    compressed_bytes,
    gguf_bytes,
    gguf_fixed_bytes,
    mlx_bytes,
    modelopt_bytes,
    safetensors_bytes,
)
from hpcmpq.targets.llama_cpp import GGUF_ARCHITECTURES, GGUF_TYPES
from hpcmpq.targets.vllm import GENERAL, fused_layers

MLX_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of models that mlx-lm builds with the layers' names of transformers; each is run in the tests."""


@dataclass(frozen=True)
class Target:
    """An engine.

    Attributes:
        name: The name in configs.
        export: The exporter that writes for it, a name in `hpcmpq.export.EXPORTERS`.
        formats: Formats that its file holds exactly and its kernels run.
        group_sizes: Values of `quantizer.group_size` that it takes; empty for any.
        symmetric: Whether codes must be centred on zero, without zero points.
        fused: Architecture -> tie rules: last parts of module names that share a format; None if it is unknown.
        fused_otherwise: Tie rules of an unknown architecture.
        fuses_experts: Whether all experts of a layer share a format.
        holds_embeddings: Whether its file holds embeddings in any format, beside linear layers.
        holds_experts: Whether its file holds experts that transformers keeps in one tensor and saves one by one.
        member_bytes: Bytes of one weight's tensors and their entries in the file's directory.
        fixed_bytes: Bytes of a tensor that is not quantized: (name, shape, bytes of one number) -> bytes.
        model_types: `model_type` of the models that its file can describe; empty for any.
        instead: What to do with models of other types.
        keeps_unused: Whether its file holds tensors of the original's files that the model does not use, too.
    """

    name: str
    export: str
    formats: tuple[str, ...]
    group_sizes: tuple[int | None, ...]
    symmetric: bool
    member_bytes: Callable[[Member, Format, Quantizer], int]
    fixed_bytes: Callable[[str, Sequence[int], int], int]
    fused: Callable[[str], tuple[tuple[str, ...], ...] | None] = lambda architecture: ()
    fused_otherwise: tuple[tuple[str, ...], ...] = ()
    fuses_experts: bool = False
    holds_embeddings: bool = False
    holds_experts: bool = False
    model_types: tuple[str, ...] = ()
    instead: str = ""
    keeps_unused: bool = True


_INTEGERS = tuple(f"int{bits}" for bits in range(2, 9))

_FLOATS = ("fp8_e4m3", "fp8_block", "mxfp8", "mxfp4", "mxfp4a16", "nvfp4", "nvfp4a16", "bf16")

TARGETS: dict[str, Target] = {
    "transformers": Target(
        name="transformers",
        export="compressed_tensors",
        holds_experts=True,
        formats=(*_INTEGERS, *_FLOATS),
        group_sizes=(),
        symmetric=True,
        member_bytes=compressed_bytes,
        fixed_bytes=safetensors_bytes,
    ),
    "vllm": Target(
        name="vllm",
        export="compressed_tensors",
        formats=(*_INTEGERS, *_FLOATS),
        group_sizes=(None, 32, 64, 128),
        symmetric=False,
        member_bytes=compressed_bytes,
        fixed_bytes=safetensors_bytes,
        fused=fused_layers,
        fused_otherwise=GENERAL,
        fuses_experts=True,
        holds_experts=True,
    ),
    "llama_cpp": Target(
        name="llama_cpp",
        export="gguf",
        holds_embeddings=True,
        holds_experts=True,
        formats=tuple(GGUF_TYPES),
        group_sizes=(GGUF_BLOCK,),
        symmetric=True,
        member_bytes=gguf_bytes,
        fixed_bytes=gguf_fixed_bytes,
        model_types=tuple(GGUF_ARCHITECTURES),
        instead="export tool_configs, which has a list for llama-quantize",
        keeps_unused=False,
    ),
    "mlx": Target(
        name="mlx",
        export="mlx",
        formats=("int2", "int3", "int4", "int5", "int6", "int8", "mxfp4a16", "bf16"),
        group_sizes=(32, 64, 128),
        symmetric=True,
        member_bytes=mlx_bytes,
        fixed_bytes=safetensors_bytes,
        model_types=MLX_MODEL_TYPES,
        instead="take target: transformers",
        keeps_unused=False,
    ),
    "tensorrt_llm": Target(
        name="tensorrt_llm",
        export="modelopt",
        formats=("nvfp4", "nvfp4a16", "fp8_e4m3", "fp8_block", "mxfp8", "bf16"),
        group_sizes=(),
        symmetric=False,
        member_bytes=modelopt_bytes,
        fixed_bytes=safetensors_bytes,
        fused=fused_layers,
        fused_otherwise=GENERAL,
        fuses_experts=True,
    ),
}


def find_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        UserError: If there is none.
    """
    return look_up(TARGETS, name, "target")


def check_quantizer(target: Target, quantizer: Quantizer) -> None:
    """Raise `UserError` if the target cannot hold anything rounded with these settings."""
    if target.group_sizes and quantizer.group_size not in target.group_sizes:
        sizes = ", ".join("null" if size is None else str(size) for size in target.group_sizes)
        raise UserError(
            f"target {target.name} holds groups of {sizes} weights, quantizer.group_size is "
            f"{'null' if quantizer.group_size is None else quantizer.group_size}; use one of these"
        )
    if target.symmetric and not quantizer.symmetric:
        raise UserError(
            f"target {target.name} holds symmetric codes only; set quantizer.symmetric: true, or take target: vllm, "
            "whose files hold zero points"
        )


def check_model(target: Target, values: Mapping[str, Any]) -> None:
    """Raise `UserError` if the target's file cannot describe models of the `model_type` in a `config.json`."""
    if not target.model_types:
        return
    if values.get("model_type") not in target.model_types:
        raise UserError(
            f"the {target.export} export knows the architectures {', '.join(target.model_types)}, not "
            f"{values.get('model_type')!r}; for others {target.instead}"
        )


def narrowed(
    target: Target, groups: Sequence[Group], names: Sequence[str], quantizer: Quantizer
) -> tuple[tuple[str, ...], ...]:
    """For each group the formats among `names` that the target can hold.

    Formats with groups or blocks of weights need a whole number of them.

    Raises:
        UserError: If a group is left without a format, or multiplies activations alone, or inputs have static ranges.
    """
    check_quantizer(target, quantizer)
    held = tuple(name for name in names if name in target.formats)
    if not held:
        raise UserError(
            f"target {target.name} holds none of the formats {', '.join(names)}; it holds "
            f"{', '.join(target.formats)}"
        )
    ranged = [name for name in held if FORMATS[name].takes_ranges]
    if ranged and quantizer.activations == "static":
        raise UserError(
            f"target {target.name} holds no static ranges of inputs, which {', '.join(ranged)} would have; set "
            "quantizer.activations: dynamic"
        )
    result = []
    for group in groups:
        if group.products:
            raise UserError(
                f"target {target.name} cannot round the factors of {group.name}; leave out groups.attention_products"
            )
        odd = {
            n: next((m for m in group.members if not _whole(m, FORMATS[n], quantizer)), None) for n in held
        }
        kept = tuple(name for name in held if odd[name] is None)
        if not kept and (member := odd[held[0]]) is not None:
            raise UserError(_not_whole(member, FORMATS[held[0]], quantizer, target.name))
        result.append(kept)
    return tuple(result)


def _whole(member: Member, format: Format, quantizer: Quantizer) -> bool:
    """Whether a weight is a whole number of the format's groups or blocks."""
    if format.block is not None:
        return (member.num_rows // member.tensors) % format.block[
            0
        ] == 0 and member.num_columns % format.block[1] == 0
    if format.type != "int":
        return True
    whole = quantizer.group_size is None or member.num_columns % quantizer.group_size == 0
    return whole and not _cuts_zero_points(member, format, quantizer)


def _cuts_zero_points(member: Member, format: Format, quantizer: Quantizer) -> bool:
    """Whether packed zero points of a weight's outputs end inside a word, where engines cannot join layers."""
    return not quantizer.symmetric and member.num_rows // member.tensors * format.num_bits % 32 != 0


def _not_whole(member: Member, format: Format, quantizer: Quantizer, target: str) -> str:
    advice = f"as target {target} needs; {{}}add bf16 to formats, or exclude it"
    if format.block is None and _cuts_zero_points(member, format, quantizer):
        return (
            f"{member.parameter} has {member.num_rows // member.tensors} outputs, whose zero points of "
            f"{format.num_bits} bits are no whole words of 32 bits {advice.format('set quantizer.symmetric: true, ')}"
        )
    if format.block is None:
        return (
            f"{member.parameter} has {member.num_columns} inputs, not a multiple of quantizer.group_size "
            f"{quantizer.group_size} {advice.format('choose a divisor, ')}"
        )
    return (
        f"{member.parameter} is {member.num_rows} by {member.num_columns}, not whole blocks of "
        f"{format.block[0]} by {format.block[1]} {advice.format('')}"
    )
