"""Weight quantizers: pure functions from a weight matrix [M outputs, K inputs] to what a format keeps of it.

    qparams = choose_qparams(weight_MK, FORMATS["int4"], Quantizer(group_size=64))  # scales, zero points
    codes = encode(weight_MK, qparams, FORMATS["int4"], Quantizer(group_size=64))   # what is stored
    decode(codes, qparams, ...)                                                     # what inference sees
    fake_quantize(weight_MK, ...)                                                   # all three

To add a format: one line in `hpcmpq.formats.FORMATS`, and for a new kind of number a file beside
`integer.py` with `encode` and `decode`. `tests/quantizers` runs every property over the table.
"""

from typing import Any

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers import floating, integer, super_blocks
from hpcmpq.quantizers.blocks import block_shape
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.ranges import check_finite, choose_qparams

__all__ = ["QParams", "choose_qparams", "decode", "encode", "fake_quantize"]

_KINDS: dict[str, Any] = {"int": integer, "float": floating, "ggml": super_blocks}

STEP_ELEMENTS = 2**24
"""Weights quantized at once; bounds the memory beyond input and output."""


def fake_quantize(
    weight_MK: Tensor, format: Format, quantizer: Quantizer, qparams: QParams | None = None
) -> Tensor:
    """decode(encode(w)): the weights that inference in `format` sees, in the dtype and shape given.

    Deterministic; every row depends on that row alone where `format.rows_apart`.

    Args:
        weight_MK: Any float dtype; computed in float32, or float64 for float64.
        format: The number format.
        quantizer: Group size, symmetry and kind of range.
        qparams: From `choose_qparams`; chosen here if None.

    Raises:
        ValueError: If weights are NaN or infinite; the message counts them.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> fake_quantize(torch.tensor([[-3.0, 1.0, 1.9, 0.2]]), FORMATS["int2"], Quantizer(range="absmax"))
        tensor([[-4.,  0.,  2.,  0.]])
    """
    check_finite(weight_MK)
    if qparams is None and not format.rows_apart:
        qparams = choose_qparams(weight_MK, format, quantizer)
    result_MK = torch.empty_like(weight_MK)
    largest = torch.finfo(weight_MK.dtype).max
    tall = block_shape(format, quantizer)[0]
    rows_per_step = max(1, STEP_ELEMENTS // max(1, weight_MK.shape[1] * tall)) * tall
    for start in range(0, weight_MK.shape[0], rows_per_step):
        rows = slice(start, start + rows_per_step)
        weight_RK = weight_MK[rows]
        if qparams is None:
            part = choose_qparams(weight_RK, format, quantizer)
        else:
            blocks = slice(start // tall, (start + rows_per_step) // tall)
            part = qparams.rows(blocks)
        codes_RK = encode(weight_RK, part, format, quantizer)
        result_MK[rows] = decode(codes_RK, part, format, quantizer).clamp_(-largest, largest)
    return result_MK


def encode(weight_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Codes [M, K]: int8 or uint8 for integer formats, the format's own dtype for float formats."""
    return _KINDS[format.type].encode(weight_MK.to(qparams.scale.dtype), qparams, format, quantizer)


def decode(codes_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """The weights [M, K] that codes stand for, in the dtype of `qparams.scale`."""
    return _KINDS[format.type].decode(codes_MK, qparams, format, quantizer)
