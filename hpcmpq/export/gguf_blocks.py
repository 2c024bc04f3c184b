"""Weights as the blocks of GGUF files: 32 codes and a float16 scale, byte for byte as ggml-common.h lays them out.

Q4_0, Q5_0 and Q8_0 mean scale · (code − 2^(b−1)) of unsigned codes (Q8_0: scale · signed code), which is our
symmetric grid with groups of 32. Shape letters: M rows, S blocks of a row.
"""

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.targets import GGUF_BLOCK


def to_blocks(codes_MK: Tensor, scale_MS: Tensor, num_bits: int) -> np.ndarray:
    """Rows of blocks, uint8 [M, bytes of a row].

    Args:
        codes_MK: Symmetric codes, int8; K is a multiple of 32.
        scale_MS: One scale for every 32 codes; float16 holds all of runs that were planned for such a file.
        num_bits: 4, 5 or 8.

    Raises:
        UserError: If a scale is beyond float16.

    Example:
        >>> to_blocks(torch.arange(-8, 24).clamp(max=7)[None].to(torch.int8), torch.tensor([[1.0]]), 4)[0, :4]
        array([  0,  60, 240, 241], dtype=uint8)
    """
    half_MS1 = scale_MS.to(torch.float16).cpu().numpy()[..., None]
    if not np.isfinite(half_MS1).all():
        raise UserError("a scale is beyond the float16 of GGUF's blocks; add bf16 to formats for such layers")
    parts = [half_MS1.view(np.uint8).reshape(*scale_MS.shape, 2)]
    codes_MSB = codes_MK.cpu().numpy().reshape(*scale_MS.shape, GGUF_BLOCK)
    if num_bits == 8:
        parts.append(codes_MSB.view(np.uint8))
    else:
        fields_MSB = (codes_MSB.astype(np.int16) + 2 ** (num_bits - 1)).astype(np.uint8)
        if num_bits == 5:
            parts.append(np.packbits(fields_MSB >> 4, axis=-1, bitorder="little"))
        low_MSH, high_MSH = np.split(fields_MSB & 15, 2, axis=-1)
        parts.append(low_MSH | high_MSH << 4)
    return np.concatenate(parts, axis=-1).reshape(len(codes_MK), -1)


def num_rounded(scale_MS: Tensor) -> int:
    """Scales that float16 does not hold exactly."""
    return int((scale_MS.to(torch.float16).to(scale_MS.dtype) != scale_MS).sum())
