"""Memory costs: payload bits, stored bits with scales, and bytes of the whole checkpoint."""

import numpy as np

from hpcmpq.formats import FORMATS, Quantizer, stored_bits
from hpcmpq.problem import Cost
from hpcmpq.space import KV_BYTES, Member, Option, SearchSpace
from hpcmpq.targets import Target
from hpcmpq.targets.kv_cache import bytes_per_token


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
    bytes_P = [
        sum(size for _, size in _members(space, option, quantizer, target)) for option in space.options
    ]
    return Cost("size_bytes", "bytes", np.array(bytes_P), constant=float(fixed_bytes))


def active_bytes_cost(
    space: SearchSpace, quantizer: Quantizer, active_fixed_bytes: int, target: Target | None = None
) -> Cost:
    """Bytes of weights that are read for a token: of experts the share that is chosen, all else as `size_bytes`.

    Args:
        space: Whose members know their share.
        quantizer: How they are stored.
        active_fixed_bytes: Bytes outside the searched groups that are read for a token.
        target: As of `size_bytes_cost`.
    """
    bytes_P = [
        sum(member.active * size for member, size in _members(space, option, quantizer, target))
        for option in space.options
    ]
    return Cost("active_bytes", "bytes per token", np.array(bytes_P), constant=float(active_fixed_bytes))


def kv_bytes_cost(space: SearchSpace) -> Cost:
    """Bytes that a token adds to the caches of keys and values, with their scales."""
    bytes_P = [bytes_per_token(space.groups[option.group], option.format) for option in space.options]
    return Cost(KV_BYTES, "bytes per token", np.array(bytes_P))


def _members(
    space: SearchSpace, option: Option, quantizer: Quantizer, target: Target | None
) -> list[tuple[Member, float]]:
    """(weight, its bytes) of an option's group."""
    chosen = FORMATS[option.format]
    if target is not None:
        return [
            (m, float(target.member_bytes(m, chosen, quantizer))) for m in space.groups[option.group].members
        ]
    return [
        (m, stored_bits(chosen, quantizer, m.num_rows, m.num_columns) / 8.0)
        for m in space.groups[option.group].members
    ]


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
