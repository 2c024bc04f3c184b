"""Memory costs: payload bits, stored bits with scales, and bytes of the whole checkpoint."""

import numpy as np

from hpcmpq.formats import FORMATS, Quantizer, stored_bits
from hpcmpq.problem import Cost
from hpcmpq.space import SearchSpace
from hpcmpq.targets import Target


def weight_bits_cost(space: SearchSpace) -> Cost:
    """Payload bits per weight of the searched groups, without scales."""
    total = sum(group.numel for group in space.groups)
    bits_P = [FORMATS[o.format].num_bits * space.groups[o.group].numel for o in space.options]
    return Cost("weight_bits", "bits per weight", np.array(bits_P, dtype=np.float64) / total)


def average_bits_cost(space: SearchSpace, quantizer: Quantizer) -> Cost:
    """Stored bits per weight of the searched groups, with scales and zero points."""
    total = sum(group.numel for group in space.groups)
    return Cost("average_bits", "bits per weight", stored_bits_P(space, quantizer) / total)


def size_bytes_cost(
    space: SearchSpace, quantizer: Quantizer, fixed_bytes: int, target: Target | None = None
) -> Cost:
    """Bytes of the whole checkpoint: searched groups as stored, everything else as it is (`fixed_bytes`).

    With a target, of its engine's weight file, with padding and directory.
    """
    bytes_P = stored_bits_P(space, quantizer) / 8.0
    if target is not None:
        members = [(space.groups[option.group].members, FORMATS[option.format]) for option in space.options]
        sizes = [sum(target.member_bytes(m, format, quantizer) for m in found) for found, format in members]
        bytes_P = np.array(sizes, dtype=np.float64)
    return Cost("size_bytes", "bytes", bytes_P, constant=float(fixed_bytes))


def stored_bits_P(space: SearchSpace, quantizer: Quantizer) -> np.ndarray:
    """Stored bits of every option, float64 [P]."""
    return np.array(
        [
            sum(
                stored_bits(FORMATS[option.format], quantizer, member.num_rows, member.num_columns)
                for member in space.groups[option.group].members
            )
            for option in space.options
        ],
        dtype=np.float64,
    )
