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

BLOCK = 32
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
    weight_MK: Tensor,
    factor: tuple[Tensor, Tensor],
    qparams: QParams,
    format: Format,
    quantizer: Quantizer,
    asymmetry_KK: Tensor | None = None,
) -> Tensor:
    """Codes [M, K] of a weight, rounded column by column: int8 if symmetric, uint8 if not.

    Args:
        weight_MK: Finite; computed in float64.
        factor: From `compensation`.
        qparams: Scales (and zero points) of the weight, [M, S].
        format: An integer format.
        quantizer: Group size and symmetry that `qparams` were chosen for.
        asymmetry_KK: From `hpcmpq.quantizers.propagation.asymmetry`: row k times column k's weights is added to the
            columns after k.
    """
    check_finite(weight_MK)
    order_K, upper_KK = factor
    limits = code_limits(format, quantizer)
    num_columns = weight_MK.shape[1]
    length = split_groups(weight_MK[:1], quantizer.group_size).shape[-1]
    # Columns as rows in memory: every step works on one of them and the few that follow.
    rest_KM = weight_MK.double().T[order_K].contiguous()
    scale_SM = qparams.scale.double().T.contiguous()
    zero_point_SM = None if qparams.zero_point is None else qparams.zero_point.T.contiguous()
    codes_KM = torch.empty_like(rest_KM)
    places = order_K.tolist()
    for start in range(0, num_columns, BLOCK):
        stop = min(start + BLOCK, num_columns)
        errors_BM, values_BM = torch.zeros_like(rest_KM[start:stop]), torch.zeros_like(rest_KM[start:stop])
        for k in range(start, stop):
            values_BM[k - start] = rest_KM[k]
            s = places[k] // length
            zero_point_M = None if zero_point_SM is None else zero_point_SM[s]
            codes_M = nearest_codes(rest_KM[k], scale_SM[s], zero_point_M, limits)
            codes_KM[places[k]] = codes_M
            steps_M = codes_M if zero_point_M is None else codes_M - zero_point_M
            error_M = (rest_KM[k] - steps_M * scale_SM[s]) / upper_KK[k, k]
            rest_KM[k + 1 : stop].addr_(upper_KK[k, k + 1 : stop], error_M, alpha=-1.0)
            if asymmetry_KK is not None:
                rest_KM[k + 1 : stop].addr_(asymmetry_KK[k, k + 1 : stop], values_BM[k - start])
            errors_BM[k - start] = error_M
        rest_KM[stop:].addmm_(upper_KK[start:stop, stop:].T, errors_BM, alpha=-1.0)
        if asymmetry_KK is not None:
            rest_KM[stop:].addmm_(asymmetry_KK[start:stop, stop:].T, values_BM)
    return codes_KM.T.contiguous().to(torch.int8 if quantizer.symmetric else torch.uint8)
