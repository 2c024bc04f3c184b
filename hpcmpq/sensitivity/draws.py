"""Random numbers that a seed and places in the calibration set decide, whatever the size of the seed."""

import torch


def generator_of(number: int) -> torch.Generator:
    """A generator seeded with a number made of `calibration.seed`; numbers past 64 bits are taken modulo 2⁶⁴.

    Example:
        >>> generator_of(2**64 + 7).initial_seed()
        7
    """
    in_range = -(2**63) <= number < 2**64
    return torch.Generator().manual_seed(number if in_range else number % 2**64)
