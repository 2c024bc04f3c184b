"""ggml's K-quants and tables: codes whose scales (and offsets) are small integers under a float16 of a super-block.

    w ≈ d·s·q − d′·m      q2_k, q4_k, q5_k: q from 0, s and m ≥ 0
    w ≈ d·s·q             q3_k, q6_k: signed q and s
    w ≈ d·s·v[q]          iq4_xs, iq4_nl: v is a table; iq4_nl has s = 1 and blocks of 32
    w ≈ d·q − d′          q4_1, q5_1: q from 0, d′ of any sign, blocks of 32

Every product is exact in float32, so what `decode` gives is what llama.cpp's kernels make of the bytes, bit for bit.
Shape letters: M output channels, K inputs, N super-blocks, G groups of one, L weights of a group, F factors.

Source: ggml's `ggml-common.h` (layouts) and `ggml-quants.c` (the search: least squares around a grid of scales).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import split_groups

SUPER_BLOCK = 256

VALUES_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Layout:
    """What a type of ggml stores of a super-block.

    Attributes:
        length: Weights that share a scale, L.
        codes: Smallest and largest code.
        largest_scale: Of the small integers; 1 where the float16 is the scale.
        offsets: Whether groups have offsets, and scales no sign. Offsets are never negative but where the
            float16 is the offset.
        values: What codes stand for; empty for themselves.
    """

    length: int
    codes: tuple[int, int]
    largest_scale: int
    offsets: bool = False
    values: tuple[int, ...] = ()

    @property
    def signed_offsets(self) -> bool:
        """Whether offsets may be negative, so that zero need not lie within the codes."""
        return self.offsets and self.largest_scale == 1


LAYOUTS: Mapping[str, Layout] = {
    "q2_k": Layout(16, (0, 3), 15, offsets=True),
    "q3_k": Layout(16, (-4, 3), 31),
    "q4_k": Layout(32, (0, 15), 63, offsets=True),
    "q5_k": Layout(32, (0, 31), 63, offsets=True),
    "q6_k": Layout(16, (-32, 31), 127),
    "iq4_xs": Layout(32, (0, 15), 31, values=VALUES_IQ4),
    "iq4_nl": Layout(32, (0, 15), 1, values=VALUES_IQ4),
    "q4_1": Layout(32, (0, 15), 1, offsets=True),
    "q5_1": Layout(32, (0, 31), 1, offsets=True),
}

FACTORS = (1.0, 0.7, 0.76, 0.82, 0.88, 0.94, 1.06, 1.12)
"""On the scale that holds the largest weight of a group."""

SUPER_FACTORS = (1.0, 0.94, 0.97, 1.03)
"""On the float16 that holds the largest scale of a super-block."""


def choose(weight_MK: Tensor, format: Format, importance_K: Tensor | None = None) -> QParams:
    """Scales and offsets of least squared error, by search in groups and then in super-blocks.

    Args:
        weight_MK: Finite, float32 or float64; K is padded with zeros to whole super-blocks.
        format: One of `LAYOUTS`.
        importance_K: What a squared error of each input counts, not negative; the same for all if None.

    Returns:
        `scale` and `offset` [M, S] of every group, and the float16 numbers `super_scale` and `super_offset` [M, B]
        that they are whole multiples of.
    """
    layout = LAYOUTS[format.name]
    size = SUPER_BLOCK if layout.largest_scale > 1 else layout.length
    padded_MBL = _whole(weight_MK, size)
    x_NGL = padded_MBL.reshape(-1, size // layout.length, layout.length)
    counts_NGL = None
    if importance_K is not None and (mean := float(importance_K.mean())) > 0:
        counts_1BL = _whole((importance_K / mean).to(weight_MK.dtype)[None], size)
        counts_NGL = counts_1BL.expand(len(weight_MK), -1, -1).reshape(x_NGL.shape)
    scale_NG, offset_NG = _fit(x_NGL, layout, counts_NGL)
    best: tuple[Tensor, ...] = ()
    for factor in SUPER_FACTORS:
        # A float16 that is the scale itself may have either sign.
        largest_N1 = scale_NG if layout.largest_scale == 1 else scale_NG.abs().amax(-1, keepdim=True)
        super_N1 = _half(factor * largest_N1 / layout.largest_scale)
        offset_N1 = _half(offset_NG.amax(-1, keepdim=True) / layout.largest_scale)
        kept_NG = _multiples(scale_NG, super_N1, layout)
        shift_NG = _multiples(offset_NG, offset_N1, layout)
        error_N1 = _error(x_NGL, kept_NG, shift_NG, layout, counts_NGL).sum(-1, keepdim=True)
        found = (error_N1, super_N1, kept_NG, shift_NG)
        if not best:
            best, common_N1 = found, offset_N1
        else:
            better_N1 = error_N1 < best[0]
            best = tuple(torch.where(better_N1, new, old) for new, old in zip(found, best, strict=True))
    _, super_N1, kept_NG, shift_NG = best
    num_rows = len(weight_MK)
    return QParams(
        kept_NG.reshape(num_rows, -1),
        offset=shift_NG.reshape(num_rows, -1) if layout.offsets else None,
        super_scale=super_N1.reshape(num_rows, -1),
        super_offset=common_N1.reshape(num_rows, -1) if layout.offsets else None,
    )


def encode(weight_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Codes [M, K], int8: the nearest number of each group's grid."""
    layout = LAYOUTS[format.name]
    x_MSL = _groups(weight_MK, qparams, layout)
    offset_MS = torch.zeros_like(qparams.scale) if qparams.offset is None else qparams.offset
    codes_MSL = nearest(x_MSL, qparams.scale.unsqueeze(-1), offset_MS.unsqueeze(-1), layout)
    return codes_MSL.flatten(1)[:, : weight_MK.shape[1]].to(torch.int8)


def decode(codes_MK: Tensor, qparams: QParams, format: Format, quantizer: Quantizer) -> Tensor:
    """Weights scale · value − offset [M, K], in the dtype of `qparams.scale`."""
    layout = LAYOUTS[format.name]
    codes_MSL = _groups(codes_MK, qparams, layout)
    value_MSL = values_of(codes_MSL.to(qparams.scale.dtype), layout) * qparams.scale.unsqueeze(-1)
    if qparams.offset is not None:
        value_MSL = value_MSL - qparams.offset.unsqueeze(-1)
    return value_MSL.flatten(1)[:, : codes_MK.shape[1]]


def _fit(x_NGL: Tensor, layout: Layout, counts_NGL: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and offset of every group alone, [N, G]: the best of a grid, each improved by least squares."""
    low, high = layout.codes
    zero_NG = torch.zeros_like(x_NGL[..., 0])
    if layout.offsets:
        limit = torch.inf if layout.signed_offsets else 0.0
        first_NG = -x_NGL.amin(-1).clamp(max=limit)
        start_NG = (x_NGL.amax(-1).clamp(min=-limit) + first_NG) / high
    else:
        largest_NG1 = x_NGL.abs().argmax(-1, keepdim=True)
        end = min(layout.values) if layout.values else low
        first_NG, start_NG = zero_NG, x_NGL.gather(-1, largest_NG1)[..., 0] / end
    best_NG = torch.full_like(zero_NG, torch.inf)
    scale_NG, offset_NG = zero_NG, zero_NG
    for factor in FACTORS:
        tried_NG, shift_NG = factor * start_NG, first_NG
        codes_NGL = nearest(x_NGL, tried_NG.unsqueeze(-1), shift_NG.unsqueeze(-1), layout)
        tried_NG, shift_NG = _least_squares(x_NGL, values_of(codes_NGL, layout), layout, counts_NGL)
        error_NG = _error(x_NGL, tried_NG, shift_NG, layout, counts_NGL)
        better_NG = error_NG < best_NG
        best_NG = torch.where(better_NG, error_NG, best_NG)
        scale_NG = torch.where(better_NG, tried_NG, scale_NG)
        offset_NG = torch.where(better_NG, shift_NG, offset_NG)
    return scale_NG, offset_NG


def _least_squares(
    x_NGL: Tensor, value_NGL: Tensor, layout: Layout, counts_NGL: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scale and offset that bring given values closest to x."""
    counted_NGL = value_NGL if counts_NGL is None else value_NGL * counts_NGL
    square_NG, product_NG = (counted_NGL * value_NGL).sum(-1), (counted_NGL * x_NGL).sum(-1)
    alone_NG = torch.where(square_NG > 0, product_NG / square_NG, 0.0)
    if not layout.offsets:
        return alone_NG, torch.zeros_like(alone_NG)
    if counts_NGL is None:
        total_NG: Tensor | float = float(layout.length)
        mean_NG, middle_NG = value_NGL.mean(-1), x_NGL.mean(-1)
    else:
        total_NG = counts_NGL.sum(-1).clamp(min=torch.finfo(x_NGL.dtype).tiny)
        mean_NG, middle_NG = counted_NGL.sum(-1) / total_NG, (counts_NGL * x_NGL).sum(-1) / total_NG
    spread_NG = square_NG - mean_NG.square() * total_NG
    slope_NG = torch.where(
        spread_NG > 0, (product_NG - mean_NG * middle_NG * total_NG) / spread_NG, 0.0
    ).clamp(min=0)
    offset_NG = slope_NG * mean_NG - middle_NG
    if layout.signed_offsets:
        return slope_NG, offset_NG
    free_NG = offset_NG >= 0
    return torch.where(free_NG, slope_NG, alone_NG.clamp(min=0)), offset_NG.clamp(min=0)


def nearest(x: Tensor, scale: Tensor, offset: Tensor, layout: Layout) -> Tensor:
    """Codes of the numbers of a grid that are nearest, in the dtype given; scale and offset broadcast to x."""
    steps = torch.where(scale != 0, (x + offset) / torch.where(scale != 0, scale, 1.0), 0.0)
    if not layout.values:
        return steps.round_().clamp_(*layout.codes)
    values = torch.tensor(layout.values, dtype=x.dtype, device=x.device)
    return torch.bucketize(steps, (values[1:] + values[:-1]) / 2).to(x.dtype)


def values_of(codes: Tensor, layout: Layout) -> Tensor:
    """What codes stand for, to be scaled; in the dtype given."""
    if not layout.values:
        return codes
    return torch.tensor(layout.values, dtype=codes.dtype, device=codes.device)[codes.long()]


def _error(
    x_NGL: Tensor, scale_NG: Tensor, offset_NG: Tensor, layout: Layout, counts_NGL: Tensor | None
) -> Tensor:
    scale_NG1, offset_NG1 = scale_NG.unsqueeze(-1), offset_NG.unsqueeze(-1)
    value_NGL = values_of(nearest(x_NGL, scale_NG1, offset_NG1, layout), layout)
    error_NGL = (value_NGL * scale_NG1 - offset_NG1 - x_NGL).square()
    return (error_NGL if counts_NGL is None else error_NGL * counts_NGL).sum(-1)


def _multiples(x_NG: Tensor, unit_N1: Tensor, layout: Layout) -> Tensor:
    """The nearest whole multiples that fit."""
    unit = torch.where(unit_N1 != 0, unit_N1, 1.0)
    return (x_NG / unit).round_().clamp_(-layout.largest_scale, layout.largest_scale) * unit_N1


def _half(x: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest).to(torch.float16).to(x.dtype)


def _whole(matrix_MK: Tensor, size: int) -> Tensor:
    return torch.nn.functional.pad(matrix_MK, (0, -matrix_MK.shape[1] % size))


def _groups(matrix_MK: Tensor, qparams: QParams, layout: Layout) -> Tensor:
    """The matrix in groups, padded to as many as there are scales."""
    missing = qparams.scale.shape[1] * layout.length - matrix_MK.shape[1]
    return split_groups(torch.nn.functional.pad(matrix_MK, (0, missing)), layout.length)
