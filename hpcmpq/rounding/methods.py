"""How a weight is rounded again at a solution.

All see the inputs x̃ that the quantized model's earlier blocks really give; those that need the original compare with
the outputs W x that it gives.
"""

from collections.abc import Callable

from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import compensated_codes, compensated_qparams, compensation
from hpcmpq.quantizers.propagation import asymmetry, corrected_weight
from hpcmpq.rounding.layer_inputs import InputSums

RoundWeight = Callable[[Tensor, InputSums, Format, Quantizer, float], tuple[Tensor, QParams]]
"""(weight [M, K], sums over its inputs, format, quantizer, strength) to codes [M, K] and what they mean."""


def gptq(
    weight_MK: Tensor, sums: InputSums, format: Format, quantizer: Quantizer, strength: float = 0.0
) -> tuple[Tensor, QParams]:
    """Of least Σ |(Q − W) x̃|²: the outputs that the original's weight would give from the same inputs."""
    qparams = compensated_qparams(weight_MK, sums.hessian_KK, format, quantizer)
    factor = compensation(sums.hessian_KK, quantizer)
    return compensated_codes(weight_MK, factor, qparams, format, quantizer), qparams


def gptaq(
    weight_MK: Tensor, sums: InputSums, format: Format, quantizer: Quantizer, strength: float
) -> tuple[Tensor, QParams]:
    """Towards least Σ |Q x̃ − W x|², a column at a time, by the columns that are not rounded yet."""
    if sums.cross_KK is None:
        return gptq(weight_MK, sums, format, quantizer)
    qparams = compensated_qparams(weight_MK, sums.hessian_KK, format, quantizer)
    factor = compensation(sums.hessian_KK, quantizer)
    asymmetry_KK = asymmetry(sums.cross_KK, factor, strength)
    return compensated_codes(weight_MK, factor, qparams, format, quantizer, asymmetry_KK), qparams


def qep(
    weight_MK: Tensor, sums: InputSums, format: Format, quantizer: Quantizer, strength: float
) -> tuple[Tensor, QParams]:
    """Towards least Σ |Q x̃ − W x|²: the weight is corrected before it is rounded, ranges are the corrected one's."""
    if sums.cross_KK is None:
        return gptq(weight_MK, sums, format, quantizer)
    factor = compensation(sums.hessian_KK, quantizer)
    corrected_MK = corrected_weight(weight_MK, sums.cross_KK, factor, strength)
    qparams = compensated_qparams(corrected_MK, sums.hessian_KK, format, quantizer)
    return compensated_codes(corrected_MK, factor, qparams, format, quantizer), qparams
