"""Scales and zero points as arrays of a file, FORMAT/PART of each part that a format has."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hpcmpq.quantizers.codes import QParams

PARTS = ("scale", "offset", "super_scale", "super_offset", "global_scale", "zero_point")
"""Of `QParams`; integers are of zero points alone."""


def arrays_of(format_name: str, qparams: QParams) -> dict[str, np.ndarray]:
    """{name in the file: array} of what a format's codes mean, as they are."""
    parts = {part: getattr(qparams, part) for part in PARTS}
    return {f"{format_name}/{part}": x.cpu().numpy() for part, x in parts.items() if x is not None}


def qparams_in(arrays: Mapping[str, np.ndarray], format_name: str, like: Tensor) -> QParams:
    """What a format's codes mean, of its arrays, on the device of `like` and in float32, or float64 of such weights."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    parts = {}
    for part in PARTS:
        if (array := arrays.get(f"{format_name}/{part}")) is not None:
            value = torch.from_numpy(array).to(like.device)
            parts[part] = value.to(dtype) if value.is_floating_point() else value
    return QParams(**parts)
