"""What the codes of a weight mean: scales and zero points."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class QParams:
    """What codes mean: weight = scale · (code − zero_point).

    Attributes:
        scale: Positive, exact in the dtype that `Quantizer.scales` names; float32, or float64 of such weights, [M, S].
        zero_point: Integer code of the weight zero, int32 [M, S], or None for symmetric and float formats.
    """

    scale: Tensor
    zero_point: Tensor | None = None
