"""Constraints of the config as they act on options: fixed, forbidden, fewest and most bits, ties."""

from fnmatch import fnmatchcase

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS, check_format
from hpcmpq.settings import SolverConfig
from hpcmpq.space import SearchSpace


def allowed_options(space: SearchSpace, settings: SolverConfig) -> np.ndarray:
    """Bool [P]: options that fixed, forbidden, min_bits and max_bits leave.

    Raises:
        UserError: If a pattern matches nothing, a format is unknown, or a group is left without an option.
    """
    allowed_P = np.ones(space.num_options, dtype=bool)
    bits_P = np.array([FORMATS[option.format].num_bits for option in space.options])
    format_P = np.array([option.format for option in space.options])
    for pattern, name in settings.fixed.items():
        check_format(name, f"solver.fixed[{pattern}]")
        allowed_P &= ~_matching(space, pattern, "fixed") | (format_P == name)
    for pattern, names in settings.forbidden.items():
        for name in names:
            check_format(name, f"solver.forbidden[{pattern}]")
        allowed_P &= ~(_matching(space, pattern, "forbidden") & np.isin(format_P, list(names)))
    for pattern, bits in settings.min_bits.items():
        allowed_P &= ~_matching(space, pattern, "min_bits") | (bits_P >= bits)
    for pattern, bits in settings.max_bits.items():
        allowed_P &= ~_matching(space, pattern, "max_bits") | (bits_P <= bits)
    left_G = np.bincount(space.group_P, weights=allowed_P, minlength=len(space.groups))
    if not left_G.all():
        group = space.groups[int(np.argmin(left_G))].name
        raise UserError(
            f"solver.fixed, forbidden, min_bits and max_bits leave no format for group {group!r}; relax one"
        )
    return allowed_P


def tied_groups(space: SearchSpace, settings: SolverConfig) -> tuple[tuple[int, ...], ...]:
    """Group indices of every tie rule of the solver settings."""
    ties = []
    for patterns in settings.tie:
        matched = np.zeros(len(space.groups), dtype=bool)
        for pattern in patterns:
            matched[space.group_P[_matching(space, pattern, "tie")]] = True
        ties.append(tuple(np.flatnonzero(matched).tolist()))
    return tuple(ties)


def format_classes(space: SearchSpace) -> np.ndarray:
    """A number per option that is the same for the same format, int64 [P]; lists of formats may differ by group."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(option.format, len(numbers)) for option in space.options])


def _matching(space: SearchSpace, pattern: str, key: str) -> np.ndarray:
    matched_G = np.array([fnmatchcase(group.name, pattern) for group in space.groups])
    if not matched_G.any():
        names = ", ".join(group.name for group in space.groups[:20])
        raise UserError(f"solver.{key}: {pattern!r} matches no group; there are: {names}")
    return matched_G[space.group_P]
