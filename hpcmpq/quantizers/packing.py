"""Codes of b bits packed densely, 32 of them in b words, as compressed-tensors' pack-quantized has them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

STEP_ELEMENTS = 2**22
"""Codes packed at once: each is 8 bytes meanwhile."""


def pack(codes_MK: Tensor, num_bits: int, lowest: int) -> Tensor:
    """Codes as dense little-endian bit fields, int32 [M, ceil(K·b / 32)].

    Args:
        codes_MK: Integers from `lowest` to `lowest` + 2^b − 1.
        num_bits: b, at most 8.
        lowest: The code stored as zero.

    Example:
        >>> pack(torch.tensor([[-8, 7, 0]]), 4, -8)
        tensor([[2288]], dtype=torch.int32)
    """

    def words(rows_RK: Tensor) -> np.ndarray:
        fields_RK = (rows_RK.to(torch.int16) - lowest).to(torch.uint8).cpu().numpy()
        bits_RKB = np.unpackbits(fields_RK[..., None], axis=-1, bitorder="little")[..., :num_bits]
        bits_RB = bits_RKB.reshape(len(fields_RK), -1)
        bits_RB = np.pad(bits_RB, ((0, 0), (0, -bits_RB.shape[1] % 32)))
        return np.packbits(bits_RB, axis=-1, bitorder="little").view("<i4")

    return _by_rows(words, codes_MK, codes_MK.shape[1])


def unpack(words_RW: Tensor, num_bits: int, num_columns: int) -> Tensor:
    """Unsigned fields, int16 [R, num_columns], of densely packed little-endian int32 words.

    Example:
        >>> unpack(torch.tensor([[2288]], dtype=torch.int32), 4, 3)
        tensor([[ 0, 15,  8]], dtype=torch.int16)
    """

    def fields(rows_RW: Tensor) -> np.ndarray:
        bytes_RB = np.ascontiguousarray(rows_RW.to(torch.int32).cpu().numpy(), "<i4").view(np.uint8)
        size = -(-num_columns // 8) * num_bits  # eight fields are as many bytes as one has bits
        bytes_RB = np.pad(bytes_RB, ((0, 0), (0, max(0, size - bytes_RB.shape[1]))))[:, :size]
        bytes_REB = bytes_RB.reshape(len(bytes_RB), -1, num_bits)
        eight_RE = np.zeros(bytes_REB.shape[:2], np.uint64)
        for place in range(num_bits):
            eight_RE |= bytes_REB[..., place].astype(np.uint64) << np.uint64(8 * place)
        fields_RE8 = np.empty((*eight_RE.shape, 8), np.int16)
        for place in range(8):
            fields_RE8[..., place] = (eight_RE >> np.uint64(num_bits * place)) & np.uint64(2**num_bits - 1)
        return fields_RE8.reshape(len(bytes_RB), -1)[:, :num_columns]

    return _by_rows(fields, words_RW, num_columns)


def _by_rows(change: Callable[[Tensor], np.ndarray], rows_R: Tensor, num_columns: int) -> Tensor:
    parts = [change(part) for part in rows_R.split(max(1, STEP_ELEMENTS // num_columns))]
    return torch.from_numpy(np.concatenate(parts))
