"""What statistics of a layer's inputs leave out: rows at positions that are padding.

Which rows those are is told by shapes: an input [N, T, ...] or [T, N, ...], or positions in a row [N·T, K], belongs
to the mask [N, T] of that size. Of any other input, such as one vector a sample, nothing is known to be padding, and
all of it counts.
"""

from collections.abc import Mapping

from torch import Tensor

from hpcmpq.models.attention_products import NAMES
from hpcmpq.models.kv_cache import CACHE

MASKS = ("attention_mask", "decoder_attention_mask")
"""Inputs [N, T] of a model that say which positions are real."""

_POSITION_AXES = dict(zip((*NAMES, CACHE), ((2, 3), (2, 2), (2, 2)), strict=True))
"""Of the two factors of a product inside attention: queries [N, heads, T, D] by keys [N, heads, D, T], attention
weights [N, heads, T, T] by values [N, heads, T, D]; and of keys and values in a cache."""


def padding_masks(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Which positions are real, bool [N, T], of every mask of a batch that marks some as padding."""
    found: dict[tuple[int, ...], Tensor] = {}
    for name in MASKS:
        mask = inputs.get(name)
        if mask is not None and mask.ndim == 2:
            real_NT = mask != 0
            shape = tuple(mask.shape)
            # Of two masks of one size there is no telling whose an input is: real is what either says is real.
            found[shape] = found[shape] | real_NT if shape in found else real_NT
    return tuple(real_NT for real_NT in found.values() if not bool(real_NT.all()))


def position_axes(name: str, count: int) -> tuple[int, ...]:
    """The axis of positions in each of the rounded inputs of the module called `name`."""
    return _POSITION_AXES.get(name.rpartition(".")[2], (1,) * count)


def without_padding(x: Tensor, masks: tuple[Tensor, ...], axis: int = 1) -> Tensor:
    """The rows of an input at real positions, [rows, ...]; all of it where it has no padding.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[True, False], [True, True]])
        >>> without_padding(torch.arange(4.0).reshape(2, 2, 1), (mask,)).flatten().tolist()
        [0.0, 2.0, 3.0]
    """
    for real_NT in masks:
        real = real_NT.to(x.device)
        if x.ndim >= 3 and (x.shape[0], x.shape[axis]) == real.shape:
            return x.movedim(axis, 1)[real]
        if x.ndim >= 3 and (x.shape[1], x.shape[0]) == real.shape and axis == 1:
            return x.transpose(0, 1)[real]
        if x.ndim == 2 and len(x) == real.numel():
            return x[real.flatten()]
    return x
