"""Floating-point formats: fp8, fp4 (e2m1) in blocks with scales of their own, plain bfloat16 and float32.

Casts saturate and round halves to even. torch has no arithmetic on fp4, whose numbers fp8 (e4m3) holds exactly: the
codes of e2m1 are its numbers in that dtype.
"""

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.blocks import block_shape, spread
from hpcmpq.quantizers.codes import QParams

DTYPES: dict[str, torch.dtype] = {
    "e2m1": torch.float8_e4m3fn,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
"""The torch dtype of every kind of codes."""

LARGEST_E2M1 = 6.0


def largest_value(format: Format) -> float:
    """Largest finite value of a float format, such as 448 for e4m3.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> [largest_value(FORMATS[name]) for name in ("fp8_e4m3", "fp8_e5m2", "nvfp4a16")]
        [448.0, 57344.0, 6.0]
    """
    return LARGEST_E2M1 if format.number == "e2m1" else torch.finfo(DTYPES[format.number]).max


def nearest_values(weight: Tensor, scale: Tensor, format: Format) -> Tensor:
    """Weights over their scale in the format's dtype, saturated: never infinite or NaN for finite weights.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> nearest_values(torch.tensor([0.25, 0.75, 2.5, -3.6, 9.0]), torch.ones(()), FORMATS["mxfp4"]).tolist()
        [0.0, 1.0, 2.0, -4.0, 6.0]
    """
    limit = largest_value(format)
    value = torch.div(weight, scale).clamp_(-limit, limit)
    if format.number == "e2m1":
        size = value.abs()
        step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(value.dtype)
        value = (value / step).round_() * step
    return value.to(DTYPES[format.number])


def encode(weight_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """The weight over its scale, [M, K] in the dtype of the format's codes.

    Args:
        weight_MK: Finite, in the dtype of `qparams.scale`.
        qparams: One scale per output channel, [M, 1] (ones for an unscaled format), or per block.
        format: A float format.
        quantizer: Unused: float formats take no group size and no zero point.
    """
    return nearest_values(weight_MK, _spread(qparams, weight_MK, format, quantizer), format)


def decode(codes_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Weights scale · code [M, K], in the dtype of `qparams.scale`."""
    return codes_MK.to(qparams.scale.dtype) * _spread(qparams, codes_MK, format, quantizer)


def _spread(qparams: QParams, matrix_MK: Tensor, format: Format, quantizer: Quantizer) -> Tensor:
    return spread(qparams.scale, block_shape(format, quantizer), (matrix_MK.shape[0], matrix_MK.shape[1]))
