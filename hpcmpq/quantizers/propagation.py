"""Rounding towards the original's outputs, with the inputs that a model gives whose earlier blocks are rounded.

A layer of the original gives W x. In the quantized model it is given other inputs x̃, so what is to be small is
Σ |Q x̃ − W x|², not Σ |(Q − W) x̃|². Written with H = Σ x̃ x̃ᵀ and C = Σ (x − x̃) x̃ᵀ, the first is least, as long as Q
may be anything, at W + W C H⁻¹. `corrected_weight` goes there before anything is rounded. `asymmetry` goes there a
column at a time, by the columns that are not rounded yet.

Source: Arai and Ichikawa, Quantization Error Propagation (arXiv 2504.09629), with its propagation strength; Li et al.,
GPTAQ (arXiv 2504.02692), neuron decomposition and Cholesky reformulation.
"""

import torch
from torch import Tensor


def corrected_weight(
    weight_MK: Tensor, cross_KK: Tensor, factor: tuple[Tensor, Tensor], strength: float
) -> Tensor:
    """W + s W C H⁻¹: what gives the original's outputs from the quantized model's inputs; s = 0 leaves W as it is.

    Args:
        weight_MK: W; computed in float64.
        cross_KK: C = Σ (x − x̃) x̃ᵀ, float64 [K, K].
        factor: Of H, from `hpcmpq.quantizers.gptq.compensation`, with its damping.
        strength: s, from 0 to 1.

    Returns:
        In the dtype of `weight_MK`.

    Example:
        >>> identity, order = torch.eye(2, dtype=torch.float64), torch.arange(2)
        >>> corrected_weight(torch.tensor([[2.0, 4.0]]), 0.5 * identity, (order, identity), 1.0)
        tensor([[3., 6.]])
    """
    order_K, upper_KK = factor
    moved_MK = (weight_MK.double() @ cross_KK)[:, order_K] @ upper_KK.T @ upper_KK
    corrected_MK = weight_MK.to(torch.float64, copy=True)
    corrected_MK[:, order_K] += strength * moved_MK
    return corrected_MK.to(weight_MK.dtype)


def asymmetry(cross_KK: Tensor, factor: tuple[Tensor, Tensor], strength: float) -> Tensor:
    """For `hpcmpq.quantizers.gptq.compensated_codes`: row k is s C_kF H_F⁻¹ with F the columns after k, [K, K].

    It makes the columns after k give the outputs W_k (x − x̃)_k that column k, once it is rounded, cannot.

    Args:
        cross_KK: C = Σ (x − x̃) x̃ᵀ, float64 [K, K].
        factor: Of H, from `hpcmpq.quantizers.gptq.compensation`; rows and columns are in its order.
        strength: s, from 0 to 1.
    """
    order_K, upper_KK = factor
    ordered_KK = cross_KK[order_K][:, order_K]
    return strength * ((ordered_KK @ upper_KK.T).triu(1) @ upper_KK)
