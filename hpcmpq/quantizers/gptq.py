"""Error-compensated rounding: each column's rounding error is made up for by the columns not yet rounded.

The error of a layer's outputs is tr(E H Eᵀ) with E = Q(W) − W and H = Σ x xᵀ over calibration inputs x. Rounding
column k by e_k, the least of it is reached by moving the columns F after k by −e_k (H_F⁻¹)_kj / (H_F⁻¹)_kk,
where H_F⁻¹ is the inverse over column k and those after it. All of these rows are those of the Cholesky factor
H⁻¹ = UᵀU (U upper triangular), over its diagonal. Ranges stay those of the original weight.

Source: Frantar et al., GPTQ (arXiv 2210.17323), algorithm 1; column order by diagonal: its `act_order`.
"""

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import code_limits, nearest_codes, split_groups
from hpcmpq.quantizers.ranges import check_finite

BLOCK = 128
"""Columns after which the rest of the matrix is brought up to date, in one product."""


def compensation(hessian_KK: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """What `compensated_codes` needs of H; the same for every format.

    Args:
        hessian_KK: Σ x xᵀ, symmetric positive semi-definite float64 [K, K].
        quantizer: Its `damping`, as a share of the mean diagonal, is added to the diagonal. With `act_order`
            inputs of large diagonal are rounded first.

    Returns:
        The order of the columns, int64 [K], and U with H⁻¹ = UᵀU in that order, float64 [K, K].
    """
    diagonal_K = hessian_KK.diagonal()
    damped_KK = hessian_KK.clone()
    mean = float(diagonal_K.mean())
    damped_KK.diagonal().add_(quantizer.damping * mean if mean > 0 else 1.0)
    order_K = torch.arange(len(diagonal_K), device=hessian_KK.device)
    if quantizer.act_order:
        order_K = torch.argsort(diagonal_K, descending=True, stable=True)
    inverse_KK = torch.cholesky_inverse(torch.linalg.cholesky(damped_KK[order_K][:, order_K]))
    return order_K, torch.linalg.cholesky(inverse_KK, upper=True)


def compensated_codes(
    weight_MK: Tensor, factor: tuple[Tensor, Tensor], qparams: QParams, format: Format, quantizer: Quantizer
) -> Tensor:
    """Codes [M, K] of a weight, rounded column by column: int8 if symmetric, uint8 if not.

    Args:
        weight_MK: Finite; computed in float64.
        factor: From `compensation`.
        qparams: Scales (and zero points) of the weight, [M, S].
        format: An integer format.
        quantizer: Group size and symmetry that `qparams` were chosen for.
    """
    check_finite(weight_MK)
    order_K, upper_KK = factor
    limits = code_limits(format, quantizer)
    num_columns = weight_MK.shape[1]
    length = split_groups(weight_MK[:1], quantizer.group_size).shape[-1]
    rest_MK = weight_MK.double()[:, order_K]
    scale_MS = qparams.scale.double()
    codes_MK = torch.empty_like(rest_MK)
    for start in range(0, num_columns, BLOCK):
        stop = min(start + BLOCK, num_columns)
        errors_MB = torch.zeros_like(rest_MK[:, start:stop])
        for k in range(start, stop):
            s = int(order_K[k]) // length
            zero_point_M = None if qparams.zero_point is None else qparams.zero_point[:, s]
            codes_M = nearest_codes(rest_MK[:, k], scale_MS[:, s], zero_point_M, limits)
            codes_MK[:, k] = codes_M
            steps_M = codes_M if zero_point_M is None else codes_M - zero_point_M
            error_M = (rest_MK[:, k] - steps_M * scale_MS[:, s]) / upper_KK[k, k]
            rest_MK[:, k + 1 : stop] -= error_M[:, None] * upper_KK[k, k + 1 : stop]
            errors_MB[:, k - start] = error_M
        rest_MK[:, stop:] -= errors_MB @ upper_KK[start:stop, stop:]
    result_MK = torch.empty_like(codes_MK)
    result_MK[:, order_K] = codes_MK
    return result_MK.to(torch.int8 if quantizer.symmetric else torch.uint8)
