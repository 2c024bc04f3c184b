"""Keys and values in 4 bits: rotated first, so that no number of a head stands out, then codes with a zero point.

    r = H D x,   s = max((max r - min r) / 15, 1e-6),   z = round(-min r / s),   code = round(r / s) + z in 0 .. 15
    x̂ = D H (code - z) s' / b

D are signs that are drawn once for all, H the Hadamard matrix of b numbers, b the largest power of two that divides the
head size; a head of several times b numbers is rotated in parts, and scaled as one. The zero point is kept in the four
lowest bits of the float32 scale, so what decodes is s', the scale without these. Queries are rotated likewise and the
output of attention back, so that keys and values are never rotated back by the engine; up to 16-bit roundings of
queries and outputs that is the same.

A GPU rotates in bfloat16, whatever the model computes in, and so is it done here: numbers are rounded to bfloat16
before the rotation and after it, sums between are float32. Source: vLLM 0.32.0,
`v1/attention/ops/int4_per_token_head.py`.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

SEED = 0x9E3779B9
"""Of the engine's signs, drawn by torch's generator: the Mersenne Twister."""

LARGEST_CODE = 15.0

LEAST_SCALE = 1e-6

KEPT_BITS = -16
"""A mask of the bits of a float32 scale but its four lowest."""


def round_rotated(x: Tensor) -> Tensor:
    """Keys or values [..., D] as attention sees those that a cache keeps in 4 bits, in the dtype and shape given.

    Args:
        x: Of heads of D numbers, each with a scale of its own. NaN makes its head NaN.

    Example:
        >>> x = torch.tensor([[0.5, -1.0, 2.0, 0.25, 1.0, -0.5, 0.0, 8.0]])
        >>> [round(value, 2) for value in round_rotated(x)[0].tolist()]
        [0.8, -0.8, 2.0, 0.4, 1.2, -0.4, -0.0, 8.0]
    """
    rotated = hadamard(_to_bfloat16(x) * _signs(x))
    rotated = _to_bfloat16(rotated)
    low, high = rotated.amin(-1, keepdim=True), rotated.amax(-1, keepdim=True)
    scale = torch.clamp((high - low) / LARGEST_CODE, min=LEAST_SCALE)
    zero_point = _nearest_code(-low / scale)
    codes = _nearest_code(rotated * (1.0 / scale) + zero_point)
    kept = (scale.view(torch.int32) & KEPT_BITS).view(torch.float32)
    return (hadamard((codes - zero_point) * kept) * _signs(x) / block_of(x.shape[-1])).to(x.dtype)


def hadamard(x: Tensor) -> Tensor:
    """H x of every block of the last axis, whose elements are 1 and -1; H H x is the block's size times x.

    Example:
        >>> hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])).tolist()
        [10.0, -2.0, -4.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0]
    """
    width = 1
    while width < block_of(x.shape[-1]):
        left, right = x.unflatten(-1, (-1, 2, width)).unbind(-2)
        x = torch.stack((left + right, left - right), -2).flatten(-3)
        width *= 2
    return x


def block_of(head_size: int) -> int:
    """Numbers of a head that are rotated together.

    Example:
        >>> [block_of(size) for size in (64, 80, 96)]
        [64, 16, 32]
    """
    return head_size & -head_size


def _to_bfloat16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(torch.float32)


def _nearest_code(value: Tensor) -> Tensor:
    """Halves away from zero, between the ends of the codes."""
    return torch.trunc(value + 0.5).clamp(0.0, LARGEST_CODE)


def _signs(x: Tensor) -> Tensor:
    size = x.shape[-1]
    block = block_of(size)
    return torch.tensor(_drawn(block) * (size // block), dtype=torch.float32, device=x.device)


@cache
def _drawn(count: int) -> tuple[float, ...]:
    """1 where torch's `bernoulli` of a half draws 1, else -1: the highest of the 24 bits that it compares tells."""
    bits = np.random.RandomState(SEED).randint(0, 2**32, count, dtype=np.uint32)
    return tuple((1.0 - 2.0 * (bits >> 23 & 1)).tolist())
