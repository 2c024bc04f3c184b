"""What the codes of a weight mean: scales and zero points."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class QParams:
    """What codes mean: weight = scale · (code − zero_point), or scale · value − offset in super-blocks.

    Attributes:
        scale: Positive, exact in the dtype that `Quantizer.scales` names, or as blocks have them; float32, or
            float64 of such weights, [M, S]. Of formats whose blocks span rows, one row for every block.
        zero_point: Integer code of the weight zero, int32 [M, S], or None for symmetric and float formats.
        offset: Subtracted, float [M, S], of formats of ggml that have offsets.
        super_scale: The float16 numbers that scales of ggml (of any sign) are whole multiples of, [M, B].
        super_offset: The same of offsets.
        global_scale: A power of two that every scale is a multiple of by an fp8 number, [], where these are stored.
    """

    scale: Tensor
    zero_point: Tensor | None = None
    global_scale: Tensor | None = None
    offset: Tensor | None = None
    super_scale: Tensor | None = None
    super_offset: Tensor | None = None

    def rows(self, rows: slice) -> "QParams":
        """Those of some rows (of blocks)."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return QParams(**{n: x if x is None or x.ndim == 0 else x[rows] for n, x in parts.items()})


def joined(parts: list[QParams]) -> QParams:
    """Of rows one after another; without a global scale."""
    names = [f.name for f in fields(QParams) if getattr(parts[0], f.name) is not None]
    return QParams(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
