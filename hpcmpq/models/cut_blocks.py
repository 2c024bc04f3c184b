"""Weights in blocks of fp8 whose last block is cut off: 576 rows in blocks of 128 have five scales, the last of 64.

transformers takes rows over scales for the height of a block, which spreads scales over other rows wherever the blocks
do not divide a weight. Source: `Fp8Dequantize` in transformers' `integrations/finegrained_fp8.py`, 5.23.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def whole_blocks(block: tuple[int, int]) -> Iterator[None]:
    """transformers dequantizes weights in fp8 as whole blocks inside, what is cut off of the last ones padded.

    Args:
        block: Rows and columns that share a scale, as `config.json` says.
    """
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    own = Fp8Dequantize._dequantize_one

    def padded(self: Any, quantized: Tensor, scales: Tensor, *args: Any, **options: Any) -> Tensor:
        filled = filled_up(quantized, tuple(scales.shape[-2:]), block)
        if filled is quantized:  # whole, or other codes, which may hold several values a byte
            whole: Tensor = own(self, quantized, scales, *args, **options)
            return whole
        values: Tensor = own(self, filled, scales, *args, **options)
        return values[..., : quantized.shape[-2], : quantized.shape[-1]].contiguous()

    Fp8Dequantize._dequantize_one = padded
    try:
        yield
    finally:
        Fp8Dequantize._dequantize_one = own


def filled_up(codes: Tensor, num_scales: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """Codes [..., M, K] with zeros up to whole blocks, where scales are of such; as they are elsewhere.

    Example:
        >>> filled_up(torch.ones(3, 2).to(torch.float8_e4m3fn), (2, 1), (2, 2)).shape
        torch.Size([4, 2])
        >>> filled_up(torch.ones(3, 2).to(torch.float8_e4m3fn), (1, 1), (2, 2)).shape
        torch.Size([3, 2])
    """
    rows, columns = codes.shape[-2:]
    blocks = (-(-rows // block[0]), -(-columns // block[1]))
    if num_scales != blocks or codes.dtype != torch.float8_e4m3fn:
        return codes
    added = (0, blocks[1] * block[1] - columns, 0, blocks[0] * block[0] - rows)
    if not any(added):
        return codes
    return torch.nn.functional.pad(codes.view(torch.uint8), added).view(codes.dtype)
