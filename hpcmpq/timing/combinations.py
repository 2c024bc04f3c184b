"""Which combinations of its groups' formats a sub-graph is measured in, and what is left out when there are many."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

MAX_CELLS = 100_000
"""Cells of one table of combinations, those without kernels included."""

RULES = (
    "every combination",
    "groups that read the same value share a format",
    "groups that read the same value or have the same shape share a format",
    "all groups share a format",
)
"""The first that leaves few enough combinations is used; what it leaves out cannot be chosen."""


@dataclass(frozen=True)
class Combinations:
    """What is measured of a sub-graph.

    Attributes:
        rule: One of `RULES`.
        tied: Places of the groups that share a format, each set in order, sets by their first.
        formats: Format of every group in each combination.
    """

    rule: str
    tied: tuple[tuple[int, ...], ...]
    formats: tuple[tuple[str, ...], ...]


def choose_combinations(
    kernels: Sequence[Sequence[str]],
    reads: Sequence[Hashable],
    shapes: Sequence[Hashable],
    num_formats: int,
    limit: int,
) -> Combinations:
    """The combinations of a sub-graph's groups by the first rule that leaves at most `limit`.

    Args:
        kernels: For each group the formats that have a kernel.
        reads: For each group what it reads; equal for groups that read the same value.
        shapes: For each group its shape.
        num_formats: Formats of a group, with and without kernel.
        limit: Most combinations. If even the last rule leaves more, all of those are measured.

    Example:
        >>> found = choose_combinations([["a", "b"]] * 3, "xxy", "ssr", 2, 4)
        >>> found.rule, found.tied, found.formats[1]
        ('groups that read the same value share a format', ((0, 1), (2,)), ('a', 'a', 'b'))
    """
    places = range(len(kernels))
    keys: list[list[Hashable]] = [
        list(places),
        list(reads),
        _joined(reads, shapes),
        [0 for _ in places],
    ]
    candidates = [_tied(rule, key, kernels) for rule, key in zip(RULES, keys, strict=True)]
    for rule, tied, shared in candidates:
        fits = 0 < prod(len(names) for names in shared) <= limit and num_formats ** len(tied) <= MAX_CELLS
        if fits or rule == RULES[-1]:
            break
    place_of = {place: k for k, own in enumerate(tied) for place in own}
    formats = [tuple(chosen[place_of[place]] for place in places) for chosen in product(*shared)]
    return Combinations(rule, tied, tuple(formats))


def _tied(
    rule: str, key: Sequence[Hashable], kernels: Sequence[Sequence[str]]
) -> tuple[str, tuple[tuple[int, ...], ...], list[list[str]]]:
    """The rule, sets of places with equal keys, and the formats that all of a set have kernels for."""
    tied = tuple(tuple(p for p in range(len(key)) if key[p] == first) for first in dict.fromkeys(key))
    shared = [[name for name in kernels[own[0]] if all(name in kernels[p] for p in own)] for own in tied]
    return rule, tied, shared


def _joined(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[Hashable]:
    """Labels that are equal wherever either of two labels is, directly or through others."""
    label = list(range(len(first)))
    for labels in (first, second):
        for a in range(len(label)):
            for b in range(a):
                if labels[a] == labels[b] and label[a] != label[b]:
                    old, new = label[a], label[b]
                    label = [new if value == old else value for value in label]
    return list(label)
