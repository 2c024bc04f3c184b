"""Compute costs of one sample's forward pass through the searched groups."""

import numpy as np

from hpcmpq.formats import FORMATS
from hpcmpq.problem import Cost
from hpcmpq.space import Group, SearchSpace


def bops_cost(space: SearchSpace) -> Cost:
    """Bit operations: multiply-accumulates × weight bits × activation bits (HAWQ-V3, eq. 10).

    Both factors of a product of activations count with the activation's bits; activations that a format leaves
    alone count with 16.
    """
    bops_P = [
        _weighted(space.groups[o.group], o.format, FORMATS[o.format].activation_bits) for o in space.options
    ]
    return Cost("bops", "bit operations per sample", np.array(bops_P))


def macs_cost(space: SearchSpace) -> Cost:
    """Multiply-accumulates weighted by width, in units of one 16-bit product: macs × bits / 16.

    The bits are the weight's, or the activation's in a product of activations.
    """
    macs_P = [_weighted(space.groups[o.group], o.format, 1) / 16 for o in space.options]
    return Cost("macs", "16-bit multiply-accumulates per sample", np.array(macs_P))


def active_macs_cost(space: SearchSpace, tokens_per_sample: int) -> Cost:
    """Multiply-accumulates of a token weighted by width, in units of one 16-bit product.

    Each number of a layer multiplies once for a token, those of experts as often as these are chosen; products of
    activations count as in a sample of that many tokens, for each of them.
    """
    macs_P = []
    for option in space.options:
        group, chosen = space.groups[option.group], FORMATS[option.format]
        weights = sum(member.active * member.numel for member in group.members if member.macs)
        products = sum(product.macs for product in group.products) / tokens_per_sample
        macs_P.append((weights * chosen.num_bits + products * chosen.activation_bits) / 16)
    return Cost("active_macs", "16-bit multiply-accumulates per token", np.array(macs_P))


def _weighted(group: Group, format_name: str, factor: int) -> float:
    """Σ macs × bits of the first factor, times `factor`."""
    chosen = FORMATS[format_name]
    weights = sum(member.macs for member in group.members) * chosen.num_bits
    products = sum(product.macs for product in group.products) * chosen.activation_bits
    return float((weights + products) * factor)
