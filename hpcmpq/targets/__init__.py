"""Inference engines: which formats each can hold, what must share one, and the bytes of its files.

A config that names a target is narrowed to what its engine loads before anything is measured, so that every
solution can be deployed, and `size_bytes` counts the bytes of the engine's own weight file. To add a target: one
entry in `TARGETS` and an exporter in `hpcmpq.export.EXPORTERS` that refuses whatever the entry does not promise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, SCALE_BITS, Format, Quantizer
from hpcmpq.space import Group, Member
from hpcmpq.tables import look_up
from hpcmpq.targets.vllm import GENERAL, fused_layers

GGUF_TYPES = {"int4": "Q4_0", "int5": "Q5_0", "int8": "Q8_0", "bf16": "BF16"}
"""Block types whose grid is that of a symmetric integer format with groups of 32 (llama.cpp's ggml-common.h)."""

GGUF_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` of transformers: llama.cpp's name of the architecture."""

GGUF_BLOCK, GGUF_ALIGNMENT = 32, 32


@dataclass(frozen=True)
class Target:
    """An engine.

    Attributes:
        name: The name in configs.
        export: The exporter that writes for it, a name in `hpcmpq.export.EXPORTERS`.
        formats: Formats that its file holds exactly and its kernels run.
        group_sizes: Values of `quantizer.group_size` that it takes; empty for any.
        symmetric: Whether codes must be centred on zero.
        fused: Architecture -> tie rules: last parts of module names that share a format; None if it is unknown.
        fused_otherwise: Tie rules of an unknown architecture.
        fuses_experts: Whether all experts of a layer share a format.
        member_bytes: Bytes of one weight's tensors and their entries in the file's directory.
        fixed_bytes: Bytes of a tensor that is not quantized: (name, shape, bytes of one number) -> bytes.
        model_types: `model_type` of the models that its file can describe; empty for any.
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
    model_types: tuple[str, ...] = ()
    keeps_unused: bool = True


def safetensors_entry_bytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor's entry in a safetensors header, with offsets of seven digits.

    Example:
        >>> safetensors_entry_bytes("weight", (128, 64))
        75
    """
    digits = sum(len(str(length)) + 1 for length in shape) - 1
    return len(name) + digits + len('"":{"dtype":"I32","shape":[],"data_offsets":[,]},') + 2 * 7


def packed_words(num_columns: int, num_bits: int) -> int:
    """32-bit words of a row of densely packed codes."""
    return -(-num_columns * num_bits // 32)


def _compressed_bytes(member: Member, format: Format, quantizer: Quantizer) -> int:
    """compressed-tensors' pack-quantized, float-quantized, or the plain tensor."""
    rows, columns = member.num_rows, member.num_columns
    if not format.scaled:
        total = rows * columns * format.num_bits // 8
        return total + safetensors_entry_bytes(member.parameter, (rows, columns))
    if format.type == "float":
        payload = rows * columns * format.num_bits // 8 + rows * SCALE_BITS // 8
        header = safetensors_entry_bytes(member.parameter, (rows, columns))
        return payload + header + safetensors_entry_bytes(f"{member.parameter}_scale", (rows, 1))
    num_scales = 1 if quantizer.group_size is None else -(-columns // quantizer.group_size)
    words = packed_words(columns, format.num_bits)
    shapes = {"_packed": (rows, words), "_scale": (rows, num_scales), "_shape": (2,)}
    total = 4 * rows * words + rows * num_scales * SCALE_BITS // 8 + 16
    return total + sum(safetensors_entry_bytes(member.parameter + s, shape) for s, shape in shapes.items())


def _safetensors_bytes(name: str, shape: Sequence[int], itemsize: int) -> int:
    return _numel(shape) * itemsize + safetensors_entry_bytes(name, shape)


def _gguf_entry_bytes(name: str, shape: Sequence[int]) -> int:
    """A tensor's entry in the file (its name there is about two thirds as long) and padding to its start."""
    return 8 + 2 * len(name) // 3 + 4 + 8 * len(shape) + 4 + 8 + GGUF_ALIGNMENT // 2


def _gguf_bytes(member: Member, format: Format, quantizer: Quantizer) -> int:
    """Blocks of 32 codes and a scale of 16 bits."""
    bits = member.numel * format.num_bits
    if format.scaled:
        bits += member.numel // GGUF_BLOCK * SCALE_BITS
    return bits // 8 + _gguf_entry_bytes(member.parameter, (member.num_rows, member.num_columns))


def _gguf_fixed_bytes(name: str, shape: Sequence[int], itemsize: int) -> int:
    """Vectors are float32, matrices at most as wide as they were."""
    return _numel(shape) * (4 if len(shape) == 1 else itemsize) + _gguf_entry_bytes(name, shape)


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


_INTEGERS = tuple(f"int{bits}" for bits in range(2, 9))

TARGETS: dict[str, Target] = {
    "transformers": Target(
        name="transformers",
        export="compressed_tensors",
        formats=(*_INTEGERS, "fp8_e4m3", "bf16"),
        group_sizes=(),
        symmetric=True,
        member_bytes=_compressed_bytes,
        fixed_bytes=_safetensors_bytes,
    ),
    "vllm": Target(
        name="vllm",
        export="compressed_tensors",
        formats=(*_INTEGERS, "fp8_e4m3", "bf16"),
        group_sizes=(None, 32, 64, 128),
        symmetric=True,
        member_bytes=_compressed_bytes,
        fixed_bytes=_safetensors_bytes,
        fused=fused_layers,
        fused_otherwise=GENERAL,
        fuses_experts=True,
    ),
    "llama_cpp": Target(
        name="llama_cpp",
        export="gguf",
        formats=tuple(GGUF_TYPES),
        group_sizes=(GGUF_BLOCK,),
        symmetric=True,
        member_bytes=_gguf_bytes,
        fixed_bytes=_gguf_fixed_bytes,
        model_types=tuple(GGUF_ARCHITECTURES),
        keeps_unused=False,
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
        raise UserError(f"target {target.name} holds symmetric codes only; set quantizer.symmetric: true")


def check_model(target: Target, values: Mapping[str, Any]) -> None:
    """Raise `UserError` if the target's file cannot describe models of the `model_type` in a `config.json`."""
    if not target.model_types:
        return
    if values.get("model_type") not in target.model_types:
        raise UserError(
            f"the {target.export} export knows the architectures {', '.join(target.model_types)}, not "
            f"{values.get('model_type')!r}; for others export tool_configs, which has a list for llama-quantize"
        )


def narrowed(
    target: Target, groups: Sequence[Group], names: Sequence[str], quantizer: Quantizer
) -> tuple[tuple[str, ...], ...]:
    """For each group the formats among `names` that the target can hold.

    Integer formats need inputs that are a whole number of quantization groups.

    Raises:
        UserError: If a group is left without a format, or multiplies activations alone.
    """
    check_quantizer(target, quantizer)
    held = tuple(name for name in names if name in target.formats)
    if not held:
        raise UserError(
            f"target {target.name} holds none of the formats {', '.join(names)}; it holds "
            f"{', '.join(target.formats)}"
        )
    result = []
    for group in groups:
        if group.products:
            raise UserError(
                f"target {target.name} cannot round the factors of {group.name}; leave out groups.attention_products"
            )
        odd = next((m for m in group.members if not _whole_groups(m, quantizer)), None)
        kept = tuple(n for n in held if odd is None or FORMATS[n].type != "int")
        if not kept and odd is not None:
            raise UserError(
                f"{odd.parameter} has {odd.num_columns} inputs, not a multiple of quantizer.group_size "
                f"{quantizer.group_size} as target {target.name} needs; choose a divisor, add bf16 to formats, "
                "or exclude it"
            )
        result.append(kept)
    return tuple(result)


def _whole_groups(member: Member, quantizer: Quantizer) -> bool:
    return quantizer.group_size is None or member.num_columns % quantizer.group_size == 0
