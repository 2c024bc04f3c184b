"""Bytes that a weight takes in an engine's file: codes, scales and its entries in the file's directory."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hpcmpq.formats import GLOBAL_SCALE_BITS, SCALE_BITS, Format, Quantizer
from hpcmpq.space import Member

GGUF_BLOCK, GGUF_ALIGNMENT = 32, 32


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


def compressed_bytes(member: Member, format: Format, quantizer: Quantizer) -> int:
    """compressed-tensors' pack-quantized, float-quantized, or the plain tensor; of experts one of each."""
    if member.tensors > 1:
        one = replace(member, num_rows=member.num_rows // member.tensors, tensors=1)
        return member.tensors * compressed_bytes(one, format, quantizer)
    rows, columns = member.num_rows, member.num_columns
    if not format.scaled:
        total = rows * columns * format.num_bits // 8
        return total + safetensors_entry_bytes(member.parameter, (rows, columns))
    if format.type == "float":
        return _float_bytes(member, format)
    num_scales = 1 if quantizer.group_size is None else -(-columns // quantizer.group_size)
    words = packed_words(columns, format.num_bits)
    shapes = {"_packed": (rows, words), "_scale": (rows, num_scales), "_shape": (2,)}
    total = 4 * rows * words + rows * num_scales * SCALE_BITS // 8 + 16
    if not quantizer.symmetric:
        shapes["_zero_point"] = (packed_words(rows, format.num_bits), num_scales)
        total += 4 * math.prod(shapes["_zero_point"])
    return total + sum(safetensors_entry_bytes(member.parameter + s, shape) for s, shape in shapes.items())


def _float_bytes(member: Member, format: Format) -> int:
    """Codes, a scale of 8 or 16 bits for every block (or row), and a global one where the format has it."""
    rows, columns = member.num_rows, member.num_columns
    tall, wide = format.block or (1, columns)
    scales = (-(-rows // tall), -(-columns // wide))
    packed = format.num_bits < 8
    shapes: dict[str, tuple[int, ...]] = {
        "_packed" if packed else "": (rows, columns * format.num_bits // 8),
        "_scale": scales,
    }
    total = math.prod(shapes["_packed" if packed else ""]) + math.prod(scales) * (
        SCALE_BITS // 8 if format.scales == "bf16" else 1
    )
    if format.scales == "e4m3":
        shapes["_global_scale"] = (1,)
        total += GLOBAL_SCALE_BITS // 8
        if format.static_inputs:  # of the layer's inputs
            shapes["_input_global_scale"] = (1,)
            total += GLOBAL_SCALE_BITS // 8
    return total + sum(safetensors_entry_bytes(member.parameter + s, shape) for s, shape in shapes.items())


def modelopt_bytes(member: Member, format: Format, quantizer: Quantizer) -> int:
    """ModelOpt's layout: as compressed-tensors', with scales of rows and of 128 by 128 blocks in float32."""
    total = compressed_bytes(member, format, quantizer)
    if format.scaled and format.scales == "bf16":
        tall, wide = format.block or (1, member.num_columns)
        total += 2 * -(-member.num_rows // tall) * -(-member.num_columns // wide)
    return total


def mlx_bytes(member: Member, format: Format, quantizer: Quantizer) -> int:
    """Codes, and a scale and a bias of 16 bits for every group; of mxfp4 a scale of 8 bits alone."""
    rows, columns = member.num_rows, member.num_columns
    if not format.scaled:
        return safetensors_bytes(member.parameter, (rows, columns), format.num_bits // 8)
    layer = member.parameter.removesuffix(".weight")
    floating = format.type == "float"
    scales = (rows, columns // (32 if floating else quantizer.group_size or columns))
    beside = {"scales": 1} if floating else dict.fromkeys(("scales", "biases"), SCALE_BITS // 8)
    codes = safetensors_bytes(member.parameter, (rows, packed_words(columns, format.num_bits)), 4)
    return codes + sum(safetensors_bytes(f"{layer}.{end}", scales, size) for end, size in beside.items())


def safetensors_bytes(name: str, shape: Sequence[int], itemsize: int) -> int:
    """The plain tensor and its entry."""
    return math.prod(shape) * itemsize + safetensors_entry_bytes(name, shape)


def _gguf_entry_bytes(name: str, shape: Sequence[int]) -> int:
    """A tensor's entry in the file (its name there is about two thirds as long) and padding to its start."""
    return 8 + 2 * len(name) // 3 + 4 + 8 * len(shape) + 4 + 8 + GGUF_ALIGNMENT // 2


def gguf_bytes(member: Member, format: Format, quantizer: Quantizer) -> int:
    """Blocks of 32 codes and a scale of 16 bits, or super-blocks."""
    entry = _gguf_entry_bytes(member.parameter, (member.num_rows, member.num_columns))
    if format.block is not None:
        return member.numel // format.block[1] * format.block_bytes + entry
    bits = member.numel * format.num_bits
    if format.scaled:
        bits += member.numel // GGUF_BLOCK * SCALE_BITS
    return bits // 8 + entry


def gguf_fixed_bytes(name: str, shape: Sequence[int], itemsize: int) -> int:
    """Vectors and routers are float32, matrices at most as wide as they were."""
    wide = len(shape) == 1 or name.endswith((".mlp.gate.weight", ".shared_expert_gate.weight"))
    return math.prod(shape) * (4 if wide else itemsize) + _gguf_entry_bytes(name, shape)
