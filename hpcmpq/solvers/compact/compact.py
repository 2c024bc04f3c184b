"""The solvers' working form of a `Problem`: normalised, without ties, forbidden options or fixed groups.

Axis letters: P options, G groups, C budgets.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hpcmpq.cross_terms import CrossTerms, rows_sum, submatrix, sum_among


@dataclass(frozen=True)
class JointCost:
    """A joint cost of several groups inside budget `budget`: float64 [J_1, ..., J_m], `inf` forbids."""

    budget: int
    groups: tuple[int, ...]
    table: np.ndarray


@dataclass(frozen=True)
class Compact:
    """min constant + c·x + ½ xᵀHx over one-hot x, cost_CP @ x + tables ≤ limit_C.

    Attributes:
        linear_P: c, float64 [P].
        quad_PP: H, symmetric float64 [P, P], dense or sparse, zero inside groups.
        offset_H: First option of each group and P at the end, int64 [G + 1].
        cost_CP: Costs of single options, finite float64 [C, P], each budget divided by its range.
        limit_C: Limits in the same units, with the feasibility tolerance of `Problem` included.
        tables: Joint costs.
        constant: Objective of what presolve fixed, in the original unit.
        scale: Original objective = constant + scale × compact objective.
        origin_GJ: For every group of the original problem, its option for each position of its compact
            group, int64 [G0, J], −1 where there is none.
        super_G: Compact group of every original group, int64 [G0]; −1 for a fixed one, whose option is in
            column 0 of `origin_GJ`.
    """

    linear_P: np.ndarray
    quad_PP: CrossTerms
    offset_H: np.ndarray
    cost_CP: np.ndarray
    limit_C: np.ndarray
    tables: tuple[JointCost, ...]
    constant: float
    scale: float
    origin_GJ: np.ndarray
    super_G: np.ndarray

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.offset_H) - 1

    @property
    def num_options(self) -> int:
        """P."""
        return len(self.linear_P)

    @cached_property
    def group_P(self) -> np.ndarray:
        """Group of every option, int64 [P]."""
        return np.repeat(np.arange(self.num_groups), np.diff(self.offset_H))

    @cached_property
    def size_G(self) -> np.ndarray:
        """Options of every group, int64 [G]."""
        return np.diff(self.offset_H)

    def objective(self, choice_G: np.ndarray) -> float:
        """Compact objective of one option per group; see `scale` for the original's."""
        return float(self.linear_P[choice_G].sum() + 0.5 * sum_among(self.quad_PP, choice_G))

    def original_objective(self, compact_objective: float) -> float:
        """The original problem's objective or bound for a compact one."""
        return self.constant + self.scale * compact_objective

    def costs(self, choice_G: np.ndarray) -> np.ndarray:
        """Normalised cost of every budget, float64 [C]."""
        cost_C = self.cost_CP[:, choice_G].sum(axis=1)
        for table in self.tables:
            groups = np.array(table.groups)
            cost_C[table.budget] += table.table[tuple(choice_G[groups] - self.offset_H[groups])]
        return cost_C

    def feasible(self, choice_G: np.ndarray) -> bool:
        """Whether a choice keeps every budget."""
        return bool((self.costs(choice_G) <= self.limit_C).all())

    def expand(self, choice_G: np.ndarray) -> np.ndarray:
        """Option of every original group, int64 [G0], for a compact choice."""
        position_S = np.append(choice_G - self.offset_H[:-1], 0)  # the last entry serves fixed groups (−1)
        return self.origin_GJ[np.arange(len(self.super_G)), position_S[self.super_G]]

    def compress(self, original_G: np.ndarray) -> np.ndarray | None:
        """The compact choice of an original one, or None when it uses an option that presolve removed."""
        match_GJ = self.origin_GJ == np.asarray(original_G)[:, None]
        free_G = self.super_G >= 0
        if not match_GJ[free_G].any(axis=1).all():
            return None
        position_G = np.zeros(self.num_groups, dtype=np.int64)
        found_G = match_GJ.argmax(axis=1)
        position_G[self.super_G[free_G]] = found_G[free_G]
        if (position_G[self.super_G[free_G]] != found_G[free_G]).any():
            return None
        return self.offset_H[:-1] + position_G


def restrict(compact: Compact, keep_P: np.ndarray) -> Compact | None:
    """The problem on the options `keep_P`: groups left with one option are fixed and taken out.

    Returns:
        The smaller problem in the same scale, or None when a group has no option left.
    """
    count_G = (
        np.add.reduceat(keep_P.astype(np.int64), compact.offset_H[:-1])
        if compact.num_groups
        else np.zeros(0, int)
    )
    if (count_G == 0).any():
        return None
    fixed_G = count_G == 1
    fixed_F = np.flatnonzero(keep_P & fixed_G[compact.group_P])
    free_P = np.flatnonzero(keep_P & ~fixed_G[compact.group_P])
    everything = len(free_P) == compact.num_options
    quad_PP = compact.quad_PP if everything else submatrix(compact.quad_PP, free_P, free_P)
    linear_P = compact.linear_P[free_P]
    if len(fixed_F):
        linear_P = linear_P + rows_sum(compact.quad_PP, fixed_F)[free_P]
    cost_CP = compact.cost_CP[:, free_P]
    limit_C = compact.limit_C - compact.cost_CP[:, fixed_F].sum(axis=1)
    new_group_G = np.cumsum(~fixed_G) - 1
    offset_H = np.append(0, np.cumsum(count_G[~fixed_G])).astype(np.int64)
    tables = []
    for table in compact.tables:
        axes = [np.flatnonzero(keep_P[compact.offset_H[g] : compact.offset_H[g + 1]]) for g in table.groups]
        values = table.table[np.ix_(*axes)]
        groups = tuple(int(new_group_G[g]) for g in table.groups if not fixed_G[g])
        values = values.reshape([len(axis) for axis in axes if len(axis) > 1])
        if len(groups) == 0:
            limit_C[table.budget] -= values.item()
        elif len(groups) == 1:
            first = offset_H[groups[0]]
            cost_CP[table.budget, first : first + len(values)] += values
        else:
            tables.append(JointCost(table.budget, groups, values))
    super_G, origin_GJ = _restrict_origin(compact, keep_P, fixed_G, new_group_G)
    constant = compact.constant + compact.scale * compact.objective(fixed_F)
    return Compact(
        linear_P,
        quad_PP,
        offset_H,
        cost_CP,
        limit_C,
        tuple(tables),
        constant,
        compact.scale,
        origin_GJ,
        super_G,
    )


def _restrict_origin(
    compact: Compact, keep_P: np.ndarray, fixed_G: np.ndarray, new_group_G: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    super_G = np.full(len(compact.super_G), -1, dtype=np.int64)
    origin_GJ = np.full_like(compact.origin_GJ, -1)
    kept = [
        np.flatnonzero(keep_P[start:stop])
        for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True)
    ]
    for original, group in enumerate(compact.super_G):
        if group < 0:
            origin_GJ[original, 0] = compact.origin_GJ[original, 0]
            continue
        origin_GJ[original, : len(kept[group])] = compact.origin_GJ[original, kept[group]]
        super_G[original] = -1 if fixed_G[group] else new_group_G[group]
    return super_G, origin_GJ
