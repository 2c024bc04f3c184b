"""Blocks of a weight matrix that share a scale, and scales that are powers of two or fp8 numbers.

Shape letters: M output channels, K inputs, R rows of blocks, S blocks of such a row, L weights of a block.
"""

import torch
from torch import Tensor

from hpcmpq.formats import Format, Quantizer
from hpcmpq.quantizers.integer import split_groups

LARGEST_E4M3 = torch.finfo(torch.float8_e4m3fn).max
SMALLEST_E4M3 = 2.0**-9


def block_shape(format: Format, quantizer: Quantizer) -> tuple[int, int | None]:
    """Rows and inputs that share a scale; None for all inputs.

    Example:
        >>> from hpcmpq.formats import FORMATS
        >>> [block_shape(FORMATS[name], Quantizer(group_size=64)) for name in ("int4", "mxfp4", "fp8_e4m3")]
        [(1, 64), (1, 32), (1, None)]
    """
    if format.block is not None:
        return format.block
    return 1, quantizer.group_size if format.type == "int" else None


def split_blocks(matrix_MK: Tensor, shape: tuple[int, int | None]) -> Tensor:
    """The blocks of a matrix, [R, S, L]; those at the end are padded with zeros, which cost no error."""
    rows, columns = shape
    if rows == 1:
        return split_groups(matrix_MK, columns)
    matrix_MK = torch.nn.functional.pad(matrix_MK, (0, 0, 0, -len(matrix_MK) % rows))
    groups_MSL = split_groups(matrix_MK, columns)
    blocks = groups_MSL.reshape(-1, rows, *groups_MSL.shape[1:]).transpose(1, 2)
    return blocks.flatten(2)


def spread(scale_RS: Tensor, shape: tuple[int, int | None], size: tuple[int, int]) -> Tensor:
    """The scale of every weight, [M, K] (or [M, 1] where a row has one scale)."""
    rows, columns = shape
    scale_MS = scale_RS if rows == 1 else scale_RS.repeat_interleave(rows, 0)[: size[0]]
    return scale_MS if columns is None else scale_MS.repeat_interleave(columns, 1)[:, : size[1]]


def next_power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two from 2^-126 to 2^127 that is not below x, exact in every bit, in the dtype given.

    Source: the rounding of e8m0 scales (OCP Microscaling Formats 1.0, section 5.4, gives the codes; kernels round up).

    Example:
        >>> next_power_of_two(torch.tensor([0.0, 1.0, 1.1, 3.0])).tolist()[1:]
        [1.0, 2.0, 4.0]
    """
    single = x.to(torch.float32).clamp(2.0**-126, 2.0**127)
    bits = (single.view(torch.int32) + 0x7FFFFF) & 0x7F800000
    return bits.view(torch.float32).to(x.dtype)


def global_scale(largest: Tensor, largest_code: float) -> Tensor:
    """The power of two by which scales are divided before they become fp8 numbers: they end at 224 to 448.

    Any positive number is allowed; a power of two keeps every product of scales exact, and costs less than one of
    the 15 octaves that fp8 numbers of full precision span.

    Args:
        largest: Absolute value that may not be cut off, [].
        largest_code: Of the numbers that are scaled.
    """
    return next_power_of_two(largest / (largest_code * LARGEST_E4M3)).clamp(2.0**-110, 2.0**100)


def fp8_scale(scale: Tensor, common: Tensor) -> Tensor:
    """The nearest positive multiples of `common` by an fp8 number, in the dtype given."""
    return (scale / common).clamp(SMALLEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).to(
        scale.dtype
    ) * common
