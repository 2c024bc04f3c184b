"""Scaled integer codes: w ≈ scale · (code − zero_point), one scale per group of consecutive inputs.

Shape letters: M output channels, K inputs, S scales of a channel, L inputs that share a scale.
"""

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.codes import QParams


def code_limits(format: Format, quantizer: Quantizer) -> tuple[int, int]:
    """Smallest and largest code of an integer format.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> [code_limits(FORMATS["int4"], Quantizer(symmetric=sign)) for sign in (True, False)]
        [(-8, 7), (0, 15)]
    """
    if quantizer.symmetric:
        return -(2 ** (format.num_bits - 1)), 2 ** (format.num_bits - 1) - 1
    return 0, 2**format.num_bits - 1


def split_groups(matrix_MK: Tensor, group_size: int | None) -> Tensor:
    """The rows cut into groups, [M, S, L]; a short last group is padded with zeros, which cost no error.

    Args:
        matrix_MK: Any dtype.
        group_size: L, or None for one group per row. A view where no padding is needed.
    """
    num_rows, num_columns = matrix_MK.shape
    length = num_columns if group_size is None else min(group_size, num_columns)
    padding = -num_columns % length
    if padding:
        matrix_MK = torch.nn.functional.pad(matrix_MK, (0, padding))
    return matrix_MK.reshape(num_rows, -1, length)


def nearest_codes(
    weight: Tensor, scale: Tensor, zero_point: Tensor | None, limits: tuple[int, int]
) -> Tensor:
    """clamp(round(w / scale) + zero_point) as a floating tensor; scale and zero point broadcast to w.

    Halves round to even, as everywhere in torch.
    """
    codes = torch.div(weight, scale).round_()
    if zero_point is not None:
        codes.add_(zero_point)
    return codes.clamp_(*limits)


def encode(weight_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Integer codes [M, K] of a weight: int8 if symmetric, uint8 if not.

    Args:
        weight_MK: Finite, in the dtype of `qparams.scale`.
        qparams: Scales (and zero points), [M, S].
        format: An integer format.
        quantizer: Group size and symmetry that `range` was chosen for.
    """
    weight_MSL = split_groups(weight_MK, quantizer.group_size)
    zero_point = None if qparams.zero_point is None else qparams.zero_point.unsqueeze(-1)
    codes_MSL = nearest_codes(
        weight_MSL, qparams.scale.unsqueeze(-1), zero_point, code_limits(format, quantizer)
    )
    codes_MK = codes_MSL.flatten(1)[:, : weight_MK.shape[1]]
    return codes_MK.to(torch.int8 if quantizer.symmetric else torch.uint8)


def decode(codes_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Weights scale · (code − zero_point) [M, K], in the dtype of `qparams.scale`."""
    codes_MSL = split_groups(codes_MK.to(qparams.scale.dtype), quantizer.group_size)
    if qparams.zero_point is not None:
        codes_MSL = codes_MSL - qparams.zero_point.unsqueeze(-1)
    return (codes_MSL * qparams.scale.unsqueeze(-1)).flatten(1)[:, : codes_MK.shape[1]]
