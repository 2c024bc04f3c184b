"""Compute costs of one sample's forward pass through the searched groups."""

import numpy as np

from hpcmpq.formats import FORMATS
from hpcmpq.problem import Cost
from hpcmpq.space import SearchSpace

ACTIVATION_BITS = 16
"""Bits of the activations that meet weight-only formats in a product."""


def bops_cost(space: SearchSpace) -> Cost:
    """Bit operations: multiply-accumulates × weight bits × activation bits (HAWQ-V3, eq. 10)."""
    bops_P = [
        float(space.groups[o.group].macs * FORMATS[o.format].num_bits * ACTIVATION_BITS)
        for o in space.options
    ]
    return Cost("bops", "bit operations per sample", np.array(bops_P))


def macs_cost(space: SearchSpace) -> Cost:
    """Multiply-accumulates weighted by width, in units of one 16-bit product: macs × bits / 16."""
    macs_P = [float(space.groups[o.group].macs) * FORMATS[o.format].num_bits / 16 for o in space.options]
    return Cost("macs", "16-bit multiply-accumulates per sample", np.array(macs_P))
