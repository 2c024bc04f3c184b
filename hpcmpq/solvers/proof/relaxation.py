"""The doubly nonnegative relaxation's polyhedral side: what the lifted matrix of a feasible x must satisfy.

Y = (1, x, s)(1, x, s)ᵀ of a feasible x is nonnegative; its block of two different groups is a joint
distribution of their options (sums to 1, zero on excluded pairs), its own-group block is the diagonal of the
group's distribution, equal to the first row; slack entries are at most the largest slack. Linear functions
over this set are minimised here, and points projected onto it in `projection`, block by block.

Axis letters: N lifted coordinates, P options, X padded options G·k, G groups, C budgets.
"""

from dataclasses import dataclass

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof.lift import Lift, make_lift


@dataclass(frozen=True)
class Relaxation:
    """minimise ⟨objective_NN, Y⟩ over the set above, intersected with {L R Lᵀ: R ⪰ 0}.

    Attributes:
        lift: Layout.
        objective_NN: C, with ½ H between groups and c on the diagonal.
        allowed_XX: Pairs that may be chosen together, on the diagonal existing options, bool [X, X].
        slack_limit_CX: Largest (scaled) slack beside every option, [C, X].
        slack_limit_C: Largest slack.
        unit_C: The limits that the slacks are measured in, in the compact problem's units.
    """

    lift: Lift
    objective_NN: np.ndarray
    allowed_XX: np.ndarray
    slack_limit_CX: np.ndarray
    slack_limit_C: np.ndarray
    unit_C: np.ndarray


def make_relaxation(compact: Compact, scale_P: np.ndarray | None = None) -> Relaxation:
    """The relaxation of a compact problem.

    A joint table of two groups forbids its infinite pairs; of every table the budget gets the least cost by
    option, split evenly, which is a valid underestimate.
    """
    cost_CP, limit_C = separable_budgets(compact)
    used_C = limit_C > 1e-12
    cost_CP, limit_C = cost_CP[used_C], limit_C[used_C]
    unit_C = limit_C
    cost_CP, limit_C = cost_CP / unit_C[:, None], np.ones(len(unit_C))
    lift = make_lift(compact, cost_CP, limit_C, np.ones(compact.num_options) if scale_P is None else scale_P)
    width, padded = lift.width, lift.padded
    objective_NN = np.zeros((lift.size, lift.size))
    rows = 1 + lift.column_P
    if len(lift.column_P) == padded:
        np.multiply(compact.quad_PP, 0.5, out=objective_NN[1 : 1 + padded, 1 : 1 + padded])
    else:
        objective_NN[np.ix_(rows, rows)] = 0.5 * compact.quad_PP
    objective_NN[rows, rows] = compact.linear_P
    exists_X = np.zeros(padded, bool)
    exists_X[lift.column_P] = True
    allowed_XX = exists_X[:, None] & exists_X[None, :]
    group_X = np.arange(padded) // width
    allowed_XX &= group_X[:, None] != group_X[None, :]
    allowed_XX[np.arange(padded), np.arange(padded)] = exists_X
    for table in compact.tables:
        if len(table.groups) == 2:
            first, second = table.groups
            shape = table.table.shape
            block = (
                slice(first * width, first * width + shape[0]),
                slice(second * width, second * width + shape[1]),
            )
            allowed_XX[block] &= np.isfinite(table.table)
            allowed_XX[block[1], block[0]] &= np.isfinite(table.table).T
    slack_limit_CX = np.zeros((len(limit_C), padded))
    least_CG = np.minimum.reduceat(cost_CP, compact.offset_H[:-1], axis=1)
    slack_limit_C = limit_C - least_CG.sum(axis=1)
    slack_limit_CX[:, lift.column_P] = slack_limit_C[:, None] - (cost_CP - least_CG[:, compact.group_P])
    return Relaxation(
        lift,
        objective_NN,
        allowed_XX,
        np.maximum(slack_limit_CX, 0.0),
        np.maximum(slack_limit_C, 0.0),
        unit_C,
    )


def separable_budgets(compact: Compact) -> tuple[np.ndarray, np.ndarray]:
    """Costs and limits, float64 [C, P] and [C], that every feasible choice keeps although tables are gone.

    A table T is replaced by Σ_i u_i(k_i) + r ≤ T: u is its least-squares additive fit (infinite entries
    left out by an iteration that fills them with the fit), r the least residual.
    """
    cost_CP, limit_C = compact.cost_CP.copy(), compact.limit_C.copy()
    for table in compact.tables:
        parts, least = additive_floor(table.table)
        for group, part in zip(table.groups, parts, strict=True):
            start = compact.offset_H[group]
            cost_CP[table.budget, start : start + len(part)] += part
        limit_C[table.budget] -= least
    starts = compact.offset_H[:-1]
    shift_CG = np.minimum.reduceat(cost_CP, starts, axis=1)
    return cost_CP - shift_CG[:, compact.group_P], limit_C - shift_CG.sum(axis=1)


def additive_floor(table: np.ndarray) -> tuple[list[np.ndarray], float]:
    """u_1, ..., u_m and r with Σ u_i(k_i) + r ≤ table everywhere.

    Example:
        >>> parts, least = additive_floor(np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> [part.tolist() for part in parts], least
        ([[-1.0, 1.0], [-0.5, 0.5]], 2.5)
    """
    finite = np.isfinite(table)
    filled = np.where(finite, table, table[finite].max())
    for _ in range(1 if finite.all() else 10):
        mean = filled.mean()
        parts = [
            filled.mean(axis=tuple(a for a in range(table.ndim) if a != axis)) - mean
            for axis in range(table.ndim)
        ]
        fit = np.full(table.shape, mean)
        for axis, part in enumerate(parts):
            fit = fit + part.reshape([-1 if a == axis else 1 for a in range(table.ndim)])
        filled = np.where(finite, table, fit)
    additive = fit - mean
    return parts, float((table - additive)[finite].min())


@dataclass(frozen=True)
class Minimum:
    """The least value of a linear function over the polyhedral set, and what forcing options adds.

    Attributes:
        value: The minimum; +inf when a group or pair of groups has nothing left to choose.
        rise_X: Rise of the minimum when an option is forced, ≥ 0, [X]; inf if absent.
        row_XG: Excess of an option's least entry with every group over the block's minimum, once, [X, G].
        pair_XX: Excess of every pair's entry over its block's minimum, counted twice, ≥ 0, [X, X].
        own_X: Excess of every option's own term over its group's minimum, ≥ 0, [X].
    """

    value: float
    rise_X: np.ndarray
    row_XG: np.ndarray
    pair_XX: np.ndarray
    own_X: np.ndarray


def minimise(relaxation: Relaxation, m_NN: np.ndarray, allowed_XX: np.ndarray) -> Minimum:
    """Min ⟨m, Y⟩ over the polyhedral set with the pairs `allowed_XX`; m is symmetric, float64."""
    lift = relaxation.lift
    num_groups, width, padded = lift.num_groups, lift.width, lift.padded
    inner, slack = slice(1, 1 + padded), slice(1 + padded, None)
    own_X = np.diagonal(m_NN)[inner] + 2.0 * m_NN[0, inner]
    value = float(m_NN[0, 0])
    if lift.num_budgets:
        own_X = own_X + 2.0 * np.minimum(m_NN[slack, inner] * relaxation.slack_limit_CX, 0.0).sum(axis=0)
        value += 2.0 * float(np.minimum(m_NN[slack, 0] * relaxation.slack_limit_C, 0.0).sum())
        roof_CC = np.outer(relaxation.slack_limit_C, relaxation.slack_limit_C)
        value += float(np.minimum(m_NN[slack, slack] * roof_CC, 0.0).sum())
    own_X = np.where(np.diagonal(allowed_XX), own_X, np.inf)
    own_G = own_X.reshape(num_groups, width).min(axis=1)
    pair_XX = np.where(allowed_XX, m_NN[inner, inner], np.inf)
    groups = np.arange(num_groups)
    view = pair_XX.reshape(num_groups, width, num_groups, width)
    view[groups, :, groups, :] = 0.0  # own-group blocks are in own_X
    row_XG = view.min(axis=3).reshape(padded, num_groups)  # inf for options that may not be chosen
    block_GG = row_XG.reshape(num_groups, width, num_groups).min(axis=1)
    value += float(own_G.sum()) + float(block_GG.sum())
    if not np.isfinite(value):
        infinite = np.full(padded, np.inf)
        return Minimum(np.inf, infinite, np.zeros((padded, num_groups)), np.zeros((padded, padded)), infinite)
    own_X = own_X - np.repeat(own_G, width)
    row_XG = row_XG - np.repeat(block_GG, width, axis=0)
    row_XG[~np.diagonal(allowed_XX)] = 0.0
    rise_X = own_X + 2.0 * row_XG.sum(axis=1)
    view -= block_GG[:, None, :, None]
    pair_XX *= 2.0
    return Minimum(value, rise_X, row_XG, pair_XX, own_X)
