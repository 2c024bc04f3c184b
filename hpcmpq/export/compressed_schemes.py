"""How compressed-tensors names and stores each format: the scheme in `config.json`, and the tensors of a weight.

Source: `compressed_tensors/quantization/quant_scheme.py` (its presets) and `compressors/`, version 0.20.
"""

from typing import Any

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.activations import input_scale
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import code_limits
from hpcmpq.quantizers.packing import pack

_E8M0 = {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
_E4M3 = {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}


def scheme(format: Format, quantizer: Quantizer) -> dict[str, Any]:
    """`weights`, `input_activations` and `format` of a config group."""
    symmetric = format.type != "int" or quantizer.symmetric
    numbers = {"num_bits": format.num_bits, "type": format.type, "symmetric": symmetric}
    channel = {**numbers, "strategy": "channel", "dynamic": False}
    if format.type == "int":
        if quantizer.group_size is not None:
            channel |= {"strategy": "group", "group_size": quantizer.group_size}
        return {"weights": channel, "format": "pack-quantized"}
    if format.block is None:
        inputs = {**numbers, "strategy": "token", "dynamic": True}
        return {"weights": channel, "input_activations": inputs, "format": "float-quantized"}
    rows, columns = format.block
    weights: dict[str, Any] = {**numbers, "dynamic": False}
    inputs = {**numbers, "strategy": "group", "group_size": columns, "dynamic": True}
    if rows > 1:
        weights |= {"strategy": "block", "block_structure": [rows, columns]}
    elif format.scales == "e4m3":
        weights |= {"strategy": "tensor_group", "group_size": columns, **_E4M3}
        inputs |= {"strategy": "tensor_group", "dynamic": "local", "observer": "static_minmax", **_E4M3}
    else:
        weights |= {"strategy": "group", "group_size": columns, **_E8M0}
        inputs |= _E8M0
    found: dict[str, Any] = {"weights": weights, "format": kind(format)}
    return found if format.activation is None else {**found, "input_activations": inputs}


def kind(format: Format) -> str:
    """The name of a layout among `CompressionFormat`."""
    if format.type == "int":
        return "pack-quantized"
    if format.scales == "e4m3":
        return "nvfp4-pack-quantized"
    if format.scales == "e8m0":
        return "mxfp4-pack-quantized" if format.number == "e2m1" else "mxfp8-quantized"
    return "float-quantized"


def stored(
    name: str, codes_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer
) -> dict[str, Tensor]:
    """The tensors that stand for a weight called `name` in a scaled format."""
    if format.type == "int":
        lowest, _ = code_limits(format, quantizer)
        found = {
            f"{name}_packed": pack(codes_MK, format.num_bits, lowest),
            f"{name}_scale": narrow_exactly(qparams.scale),
            f"{name}_shape": torch.tensor(codes_MK.shape),
        }
        if qparams.zero_point is not None:  # packed along outputs
            packed_SW = pack(qparams.zero_point.T, format.num_bits, lowest)
            found[f"{name}_zero_point"] = packed_SW.T.contiguous()
        return found
    codes = (
        {f"{name}_packed": pack_fp4(codes_MK)} if format.number == "e2m1" else {name: codes_MK.contiguous()}
    )
    if format.scales == "e8m0":
        return {**codes, f"{name}_scale": e8m0(qparams.scale)}
    if qparams.global_scale is not None:
        common = qparams.global_scale.to(torch.float32).reshape(1)
        return {
            **codes,
            f"{name}_scale": fp8_codes(qparams),
            f"{name}_global_scale": 1 / common,  # its layout divides by it
        }
    return {**codes, f"{name}_scale": narrow_exactly(qparams.scale)}


def input_global_scale(layer: str, maximum: float) -> dict[str, Tensor]:
    """What nvfp4 stores of the inputs of a layer, whose largest is given; its layout divides by it."""
    return {f"{layer}.input_global_scale": torch.tensor([1 / input_scale(maximum)], dtype=torch.float32)}


def pack_fp4(codes_MK: Tensor) -> Tensor:
    """Numbers of e2m1 two a byte, the first in the low half, uint8 [M, K / 2]: of four bits the first is the sign.

    Args:
        codes_MK: Numbers of e2m1 in e4m3, K even.

    Example:
        >>> pack_fp4(torch.tensor([[0.5, -6.0, 1.5, 0.0]]).to(torch.float8_e4m3fn))
        tensor([[241,   3]], dtype=torch.uint8)
    """
    bits_MK = codes_MK.contiguous().view(torch.uint8)
    steps_MK = (codes_MK.to(torch.float32).abs() * 2).to(torch.int64)
    place_S = torch.zeros(13, dtype=torch.uint8, device=codes_MK.device)
    place_S[torch.tensor([0, 1, 2, 3, 4, 6, 8, 12])] = torch.arange(
        8, dtype=torch.uint8, device=codes_MK.device
    )
    nibble_MK = place_S[steps_MK] | bits_MK >> 7 << 3
    return nibble_MK[:, ::2] | nibble_MK[:, 1::2] << 4


def e8m0(scale: Tensor) -> Tensor:
    """Powers of two as their exponent plus 127, uint8.

    Example:
        >>> e8m0(torch.tensor([1.0, 0.25]))
        tensor([127, 125], dtype=torch.uint8)
    """
    return (scale.to(torch.float32).contiguous().view(torch.int32) >> 23).to(torch.uint8)


def fp8_codes(qparams: QParams) -> Tensor:
    """Scales over the global one, exactly, in e4m3."""
    assert qparams.global_scale is not None
    return (qparams.scale / qparams.global_scale).to(torch.float8_e4m3fn)


def narrow_exactly(scale: Tensor, first: torch.dtype = torch.bfloat16) -> Tensor:
    """Scales in a dtype that holds every one of them exactly: one of the halves, float32 where neither does.

    Args:
        scale: Any dtype.
        first: Of bfloat16 and float16 the one that is tried first.
    """
    halves = (torch.bfloat16, torch.float16)
    for dtype in sorted(halves, key=lambda each: each != first):
        narrow = scale.to(dtype)
        if torch.equal(narrow.to(scale.dtype), scale):
            return narrow
    return scale.to(torch.float32)
