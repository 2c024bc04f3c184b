"""Scales and zero points of a weight matrix: the absolute maximum, or the clipping of least squared error.

Shape letters: M output channels, K inputs, S scales of a channel, L inputs that share a scale, F factors.
"""

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.blocks import block_shape, fp8_scale, global_scale, next_power_of_two, split_blocks
from hpcmpq.quantizers.codes import QParams, joined
from hpcmpq.quantizers.floating import largest_value, nearest_values
from hpcmpq.quantizers.integer import code_limits, nearest_codes
from hpcmpq.quantizers.super_blocks import choose

NUM_FACTORS = 32
"""Clipping factors that ``mse`` tries besides 1."""

LARGEST_SCALE = 65280.0
"""The largest number that both bfloat16 and float16 hold."""

SEARCH_ELEMENTS = {"cpu": 2**17, "cuda": 2**26}
"""Elements of one step of the search: a CPU's cache, a GPU's memory."""

SUPER_ELEMENTS = 2**22
"""Weights of one step of the search in super-blocks."""


def choose_qparams(
    weight_MK: Tensor,
    format: Format,
    quantizer: Quantizer,
    largest: Tensor | None = None,
    importance_K: Tensor | None = None,
) -> QParams:
    """Scales for each output channel and group of inputs; the last group may be shorter.

    ``absmax`` puts the largest weight at the end of the codes: scale = 2·max|w| / (2^b − 1) symmetric,
    (max − min) / (2^b − 1) with zero inside [min, max] asymmetric, max|w| / largest value for fp8. ``mse``
    multiplies that scale by a factor of least Σ (Q(w) − w)², searched per scale among factors that
    include 1, so that it is never worse.

    Args:
        weight_MK: Any float dtype; computed in float32, or float64 for float64.
        format: Integer formats have a scale per group, float formats one per channel or block.
        quantizer: Group size, symmetry and kind of range.
        largest: Largest absolute value of all weights that share a global scale, []; of this one alone if None.
        importance_K: What a squared error of each input counts, positive; formats of ggml alone look at it.

    Raises:
        ValueError: If weights are NaN or infinite.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> choose_qparams(torch.tensor([[-3.0, 1.0]]), FORMATS["int2"], Quantizer(range="absmax")).scale
        tensor([[2.]])
    """
    check_finite(weight_MK)
    num_rows, num_columns = weight_MK.shape
    dtype = torch.float64 if weight_MK.dtype == torch.float64 else torch.float32
    if not format.scaled:
        return QParams(torch.ones(num_rows, 1, dtype=dtype, device=weight_MK.device))
    if format.type == "ggml":
        rows_per_step = max(1, SUPER_ELEMENTS // num_columns)
        parts = [choose(rows.to(dtype), format, importance_K) for rows in weight_MK.split(rows_per_step)]
        return joined(parts)
    shape = block_shape(format, quantizer)
    common = None
    if format.scales == "e4m3":
        common = global_scale(
            (weight_MK.abs().max() if largest is None else largest).to(weight_MK.device, dtype),
            largest_value(format),
        )
    factors = _factors(format, quantizer)
    limit = SEARCH_ELEMENTS.get(weight_MK.device.type, SEARCH_ELEMENTS["cuda"])
    rows_per_step = max(1, limit // (len(factors) * num_columns * shape[0])) * shape[0]
    parts = []
    for rows_RK in weight_MK.split(rows_per_step):
        rows_RSL = split_blocks(rows_RK.to(dtype), shape)
        candidates = _candidates(rows_RSL, factors, format, quantizer, common)
        parts.append(_least_error(rows_RSL, candidates, format, quantizer))
    zero_points = [part.zero_point for part in parts if part.zero_point is not None]
    zero_point = torch.cat(zero_points) if zero_points else None
    return QParams(torch.cat([part.scale for part in parts]), zero_point, common)


def check_finite(weight: Tensor) -> None:
    """Raise `ValueError` with the count if weights are NaN or infinite."""
    if not torch.isfinite(weight).all():
        count = int((~torch.isfinite(weight)).sum())
        raise ValueError(f"{count} of {weight.numel()} weights are NaN or infinite")


def _factors(format: Format, quantizer: Quantizer) -> list[float]:
    """Factors on the absmax scale, 1 first so that ties keep it.

    Few bits gain from clipping hard; many bits only near 1. Above 1 the largest weight may meet a code
    exactly. A float format repeats itself every factor of two, until few numbers are left: fp4 gains where the
    largest weight meets 4 rather than 6. Scales that are powers of two leave halves alone.
    """
    if quantizer.range == "absmax":
        return [1.0]
    if format.scales == "e8m0":
        return [1.0, 0.5, 0.25] if format.number == "e2m1" else [1.0, 0.5]
    if format.number == "e2m1":
        return [1.0, *torch.linspace(0.7, 1.6, NUM_FACTORS // 2, dtype=torch.float64).tolist()]
    if format.type == "float":
        return [1.0, *torch.linspace(0.5, 1.0, NUM_FACTORS // 2 + 1, dtype=torch.float64).tolist()[1:-1]]
    lowest = {2: 0.2, 3: 0.3, 4: 0.45, 5: 0.6, 6: 0.75, 7: 0.85, 8: 0.92}[format.num_bits]
    highest = 1.0 + 1.0 / (2**format.num_bits - 2)
    return [1.0, *torch.linspace(lowest, highest, NUM_FACTORS, dtype=torch.float64).tolist()]


def _candidates(
    rows_RSL: Tensor, factors: list[float], format: Format, quantizer: Quantizer, common: Tensor | None
) -> QParams:
    """Qparams of every factor: scale and zero point [F, R, S]."""
    factor_F11 = torch.tensor(factors, dtype=rows_RSL.dtype, device=rows_RSL.device).reshape(-1, 1, 1)
    if format.type == "float":
        scale_RS = rows_RSL.abs().amax(-1) / largest_value(format)
        if format.scales == "bf16":
            return QParams(_storable(factor_F11 * scale_RS, quantizer))
        if common is not None:
            return QParams(torch.where(scale_RS > 0, fp8_scale(factor_F11 * scale_RS, common), common))
        scale_FRS = factor_F11 * next_power_of_two(scale_RS)
        return QParams(torch.where(scale_RS > 0, scale_FRS.clamp(min=2.0**-126), torch.ones_like(scale_FRS)))
    if quantizer.symmetric:
        largest_RS = rows_RSL.abs().amax(-1)
        return QParams(_storable(factor_F11 * (largest_RS / (2**format.num_bits - 1) * 2), quantizer))
    num_steps = 2**format.num_bits - 1
    low_RS = rows_RSL.amin(-1).clamp_(max=0.0) / num_steps
    high_RS = rows_RSL.amax(-1).clamp_(min=0.0) / num_steps
    scale_FRS = _storable(factor_F11 * (high_RS - low_RS), quantizer)
    zero_point_FRS = (-factor_F11 * low_RS / scale_FRS * num_steps).round_().clamp_(0, num_steps)
    return QParams(scale_FRS, zero_point_FRS.to(torch.int32))


def _storable(scale: Tensor, quantizer: Quantizer) -> Tensor:
    """The nearest normal bfloat16 values, in the dtype given; 1 where every weight is zero.

    Where float16 is to hold them too, those below 2⁻¹⁷, where its steps are wider, are multiples of 2⁻²⁴.
    """
    bfloat16 = torch.finfo(torch.bfloat16)
    rounded = scale.clamp(bfloat16.tiny, bfloat16.max).to(torch.bfloat16).to(scale.dtype)
    if quantizer.scales == "float16":
        float16 = torch.finfo(torch.float16)
        rounded = rounded.clamp(float16.smallest_normal * float16.eps, LARGEST_SCALE).to(torch.float16)
        rounded = rounded.to(scale.dtype)
    return torch.where(scale > 0, rounded, torch.ones_like(rounded))


def _least_error(rows_RSL: Tensor, candidates: QParams, format: Format, quantizer: Quantizer) -> QParams:
    """The candidate of least squared error for every scale, [R, S]."""
    scale_FRS, zero_point_FRS = candidates.scale, candidates.zero_point
    if len(scale_FRS) == 1:
        return QParams(scale_FRS[0], None if zero_point_FRS is None else zero_point_FRS[0])
    scale_FRS1 = scale_FRS.unsqueeze(-1)
    if format.type == "float":
        steps_FRSL = nearest_values(rows_RSL, scale_FRS1, format).to(rows_RSL.dtype)
    else:
        zero_point_FRS1 = None if zero_point_FRS is None else zero_point_FRS.unsqueeze(-1)
        steps_FRSL = nearest_codes(rows_RSL, scale_FRS1, zero_point_FRS1, code_limits(format, quantizer))
        if zero_point_FRS1 is not None:
            steps_FRSL.sub_(zero_point_FRS1)
    # Errors in units of the absmax scale neither overflow nor vanish, whatever the size of the weights.
    relative_FRS1 = scale_FRS1 / scale_FRS1[:1]
    error_FRSL = steps_FRSL.mul_(relative_FRS1).sub_(rows_RSL / scale_FRS1[0])
    best_1RS = error_FRSL.square_().sum(-1).argmin(0, keepdim=True)
    zero_point = None if zero_point_FRS is None else zero_point_FRS.gather(0, best_1RS)[0]
    return QParams(scale_FRS.gather(0, best_1RS)[0], zero_point)
