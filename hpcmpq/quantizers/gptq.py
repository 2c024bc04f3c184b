"""Error-compensated rounding: each column's rounding error is made up for by the columns not yet rounded.

The error of a layer's outputs is tr(E H Eᵀ) with E = Q(W) − W and H = Σ x xᵀ over calibration inputs x. Rounding
column k by e_k, the least of it is reached by moving the columns F after k by −e_k (H_F⁻¹)_kj / (H_F⁻¹)_kk,
where H_F⁻¹ is the inverse over column k and those after it. All of these rows are those of the Cholesky factor
H⁻¹ = UᵀU (U upper triangular), over its diagonal. Ranges stay those of the original weight; those of ggml's types are
chosen with the diagonal of H as what an input's error counts, as llama.cpp does with an importance matrix.

Source: Frantar et al., GPTQ (arXiv 2210.17323), algorithm 1; column order by diagonal: its `act_order`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers import super_blocks
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.integer import code_limits, nearest_codes
from hpcmpq.quantizers.ranges import check_finite, choose_qparams

COMPENSATED = ("int", "ggml")
"""Kinds of `Format.type` that are rounded so."""

RoundColumn = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(a column [M], its place) to its codes and the weights that they stand for."""

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
    """Codes [M, K] of a weight, rounded column by column: int8 if symmetric or of ggml, uint8 if not.

    Args:
        weight_MK: Finite; computed in float64.
        factor: From `compensation`.
        qparams: Scales (and zero points, or offsets) of the weight, [M, S].
        format: An integer format, or one of ggml.
        quantizer: Group size and symmetry that `qparams` were chosen for.
        asymmetry_KK: From `hpcmpq.quantizers.propagation.asymmetry`: row k times column k's weights is added to the
            columns after k.
    """
    check_finite(weight_MK)
    order_K, upper_KK = factor
    num_columns = weight_MK.shape[1]
    make = _super_block_columns if format.type == "ggml" else _integer_columns
    round_column = make(qparams, format, quantizer, num_columns)
    # Columns as rows in memory: every step works on one of them and the few that follow.
    rest_KM = weight_MK.double().T[order_K].contiguous()
    codes_KM = torch.empty_like(rest_KM)
    places = order_K.tolist()
    for start in range(0, num_columns, BLOCK):
        stop = min(start + BLOCK, num_columns)
        errors_BM, values_BM = torch.zeros_like(rest_KM[start:stop]), torch.zeros_like(rest_KM[start:stop])
        for k in range(start, stop):
            values_BM[k - start] = rest_KM[k]
            codes_KM[places[k]], rounded_M = round_column(rest_KM[k], places[k])
            error_M = (rest_KM[k] - rounded_M) / upper_KK[k, k]
            rest_KM[k + 1 : stop].addr_(upper_KK[k, k + 1 : stop], error_M, alpha=-1.0)
            if asymmetry_KK is not None:
                rest_KM[k + 1 : stop].addr_(asymmetry_KK[k, k + 1 : stop], values_BM[k - start])
            errors_BM[k - start] = error_M
        rest_KM[stop:].addmm_(upper_KK[start:stop, stop:].T, errors_BM, alpha=-1.0)
        if asymmetry_KK is not None:
            rest_KM[stop:].addmm_(asymmetry_KK[start:stop, stop:].T, values_BM)
    unsigned = format.type == "int" and not quantizer.symmetric
    return codes_KM.T.contiguous().to(torch.uint8 if unsigned else torch.int8)


def compensated_qparams(
    weight_MK: Tensor, hessian_KK: Tensor, format: Format, quantizer: Quantizer
) -> QParams:
    """Ranges for `compensated_codes`, of a weight whose layer's inputs have Σ x xᵀ."""
    return choose_qparams(weight_MK, format, quantizer, importance_K=hessian_KK.diagonal())


def _integer_columns(qparams: QParams, format: Format, quantizer: Quantizer, num_columns: int) -> RoundColumn:
    limits = code_limits(format, quantizer)
    length = min(quantizer.group_size or num_columns, num_columns)
    scale_SM = qparams.scale.double().T.contiguous()
    zero_point_SM = None if qparams.zero_point is None else qparams.zero_point.T.contiguous()

    def rounded(column_M: Tensor, place: int) -> tuple[Tensor, Tensor]:
        s = place // length
        zero_point_M = None if zero_point_SM is None else zero_point_SM[s]
        codes_M = nearest_codes(column_M, scale_SM[s], zero_point_M, limits)
        steps_M = codes_M if zero_point_M is None else codes_M - zero_point_M
        return codes_M, steps_M * scale_SM[s]

    return rounded


def _super_block_columns(
    qparams: QParams, format: Format, quantizer: Quantizer, num_columns: int
) -> RoundColumn:
    layout = super_blocks.LAYOUTS[format.name]
    scale_SM = qparams.scale.double().T.contiguous()
    offset_SM = (
        torch.zeros_like(scale_SM) if qparams.offset is None else qparams.offset.double().T.contiguous()
    )

    def rounded(column_M: Tensor, place: int) -> tuple[Tensor, Tensor]:
        s = place // layout.length
        codes_M = super_blocks.nearest(column_M, scale_SM[s], offset_SM[s], layout)
        return codes_M, super_blocks.values_of(codes_M, layout) * scale_SM[s] - offset_SM[s]

    return rounded
