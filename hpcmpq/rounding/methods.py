"""How a weight is rounded again at a solution: what is made of the sums over its layer's inputs, and its rows by it.

All see the inputs x̃ that the quantized model's earlier blocks really give; those that need the original compare with
the outputs W x that it gives. `Fitted` is the same for all weights that are given these inputs, and for all of their
rows, each of which is rounded by itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers import choose_qparams
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import compensated_codes, compensation
from hpcmpq.quantizers.propagation import asymmetry, corrected_weight
from hpcmpq.rounding.layer_inputs import InputSums


@dataclass(frozen=True)
class Fitted:
    """What rows are rounded by.

    Attributes:
        order_K: Order of the columns, int64 [K], see `hpcmpq.quantizers.gptq.compensation`.
        upper_KK: Of it, float64 [K, K].
        importance_K: What a squared error of each input counts, float64 [K].
        cross_KK: C, where weights are corrected before they are rounded, see `corrected_weight`.
        asymmetry_KK: See `compensated_codes`.
    """

    order_K: Tensor
    upper_KK: Tensor
    importance_K: Tensor
    cross_KK: Tensor | None = None
    asymmetry_KK: Tensor | None = None


Fit = Callable[[InputSums, Quantizer, float], Fitted]
"""(sums over a layer's inputs, quantizer, strength) to what its rows are rounded by."""


def gptq(sums: InputSums, quantizer: Quantizer, strength: float = 0.0) -> Fitted:
    """Of least Σ |(Q − W) x̃|²: the outputs that the original's weight would give from the same inputs."""
    return Fitted(*compensation(sums.hessian_KK, quantizer), sums.hessian_KK.diagonal().clone())


def gptaq(sums: InputSums, quantizer: Quantizer, strength: float) -> Fitted:
    """Towards least Σ |Q x̃ − W x|², a column at a time, by the columns that are not rounded yet."""
    fitted = gptq(sums, quantizer)
    if sums.cross_KK is None:
        return fitted
    factor = fitted.order_K, fitted.upper_KK
    return Fitted(*factor, fitted.importance_K, asymmetry_KK=asymmetry(sums.cross_KK, factor, strength))


def qep(sums: InputSums, quantizer: Quantizer, strength: float) -> Fitted:
    """Towards least Σ |Q x̃ − W x|²: the weight is corrected before it is rounded, ranges are the corrected one's."""
    fitted = gptq(sums, quantizer)
    return Fitted(fitted.order_K, fitted.upper_KK, fitted.importance_K, cross_KK=sums.cross_KK)


def rounded_rows(
    weight_RK: Tensor, fitted: Fitted, format: Format, quantizer: Quantizer, strength: float
) -> tuple[Tensor, QParams]:
    """Codes [R, K] of some rows of a weight, and what they mean."""
    factor = fitted.order_K, fitted.upper_KK
    if fitted.cross_KK is not None:
        weight_RK = corrected_weight(weight_RK, fitted.cross_KK, factor, strength)
    qparams = choose_qparams(weight_RK, format, quantizer, importance_K=fitted.importance_K)
    return compensated_codes(weight_RK, factor, qparams, format, quantizer, fitted.asymmetry_KK), qparams
