"""What the codes of a weight mean: scales and zero points."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class QParams:
    """What codes mean: weight = scale · (code − zero_point).

    Attributes:
        scale: Positive, exactly representable in bfloat16, [M, S], float32 (float64 for float64 weights). Of formats
            whose blocks span rows, one row for every block.
        zero_point: Integer code of the weight zero, int32 [M, S], or None for symmetric and float formats.
        global_scale: A power of two that every scale is a multiple of by an fp8 number, [], where these are stored.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None
