"""Floating-point formats: fp8 with one scale per output channel, plain bfloat16 and float32. Casts saturate."""

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.codes import QParams

DTYPES: dict[str, torch.dtype] = {
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
"""The torch dtype of every float format's codes."""


def largest_value(format: Format) -> float:
    """Largest finite value of a float format, such as 448 for e4m3.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> largest_value(FORMATS["fp8_e4m3"]), largest_value(FORMATS["fp8_e5m2"])
        (448.0, 57344.0)
    """
    return torch.finfo(DTYPES[format.name]).max


def nearest_values(weight: Tensor, scale: Tensor, format: Format) -> Tensor:
    """Weights over their scale in the format's dtype, saturated: never infinite or NaN for finite weights."""
    limit = largest_value(format)
    return torch.div(weight, scale).clamp_(-limit, limit).to(DTYPES[format.name])


def encode(weight_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """The weight over its scale, [M, K] in the format's own dtype.

    Args:
        weight_MK: Finite, in the dtype of `qparams.scale`.
        qparams: One scale per output channel, [M, 1] (ones for an unscaled format).
        format: A float format.
        quantizer: Unused: float formats take no group size and no zero point.
    """
    return nearest_values(weight_MK, qparams.scale, format)


def decode(codes_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Weights scale · code [M, K], in the dtype of `qparams.scale`."""
    return codes_MK.to(qparams.scale.dtype) * qparams.scale
