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
from hpcmpq.solvers.proof.messages import tightened


@dataclass(frozen=True)
class Relaxation:
    """minimise ⟨objective_NN, Y⟩ over the set above, intersected with {L R Lᵀ: R ⪰ 0}.

    Attributes:
        lift: Layout.
        objective_NN: C, with ½ H between groups and c on the diagonal.
        allowed_XX: Pairs that may be chosen together, on the diagonal existing options, bool [X, X].
        slack_limit_CX: Largest (scaled) slack beside every option, [C, X].
        slack_limit_C: Largest slack.
        used_C: Budgets of the compact problem that leave a slack, and so have one here, bool; C counts these.
        unit_C: The limits that the slacks are measured in, in the compact problem's units.
    """

    lift: Lift
    objective_NN: np.ndarray
    allowed_XX: np.ndarray
    slack_limit_CX: np.ndarray
    slack_limit_C: np.ndarray
    used_C: np.ndarray
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
        used_C,
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
    """A lower bound of a linear function at the lifted Y of every feasible choice, and what options add to it.

    Attributes:
        value: The bound; +inf when a group or pair of groups has nothing left to choose.
        rise_X: What forcing an option adds, ≥ 0, [X]; inf if absent.
        row_XG: Least of an option's pair excess with a group's options and half their own excess, ≥ 0, [X, G].
        pair_XX: Excess of every pair, ≥ 0, inf where excluded, zero inside groups, [X, X].
        own_X: Excess of every option's own term, ≥ 0, inf where excluded, [X].
    """

    value: float
    rise_X: np.ndarray
    row_XG: np.ndarray
    pair_XX: np.ndarray
    own_X: np.ndarray


def minimise(relaxation: Relaxation, m_NN: np.ndarray, allowed_XX: np.ndarray) -> Minimum:
    """A bound of ⟨m, Y⟩ over the polyhedral set with the pairs `allowed_XX`; m is symmetric, float64.

    The minimum over the set is the sum of minima by group and pair of groups; messages between groups raise it further,
    as each pair's distribution is known to have its groups' as sums.
    """
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
    own_Gk = np.where(np.diagonal(allowed_XX), own_X, np.inf).reshape(num_groups, width)
    pair_GkGk = np.where(allowed_XX, 2.0 * m_NN[inner, inner], np.inf).reshape(
        num_groups, width, num_groups, width
    )
    groups = np.arange(num_groups)
    pair_GkGk[groups, :, groups, :] = 0.0  # own-group blocks are in own_X
    pair_GkkG = np.ascontiguousarray(pair_GkGk.transpose(0, 3, 1, 2))
    rise, own_Gk, pair_GkkG = tightened(own_Gk, pair_GkkG)
    if not np.isfinite(rise):
        infinite = np.full(padded, np.inf)
        return Minimum(np.inf, infinite, np.zeros((padded, num_groups)), np.zeros((padded, padded)), infinite)
    row_GkG, half_GkG = (least_beside(pair_GkkG, share * own_Gk) for share in (1.0, 0.5))
    return Minimum(
        value + rise,
        (own_Gk + row_GkG.sum(axis=2)).ravel(),
        half_GkG.reshape(padded, num_groups),
        pair_GkkG.transpose(0, 2, 3, 1).reshape(padded, padded),
        own_Gk.ravel(),
    )


def least_beside(pair_GkkG: np.ndarray, own_Gk: np.ndarray) -> np.ndarray:
    """Least pair excess plus own excess of a group's options, beside every option, [G, k, G]; 0 inside groups."""
    row_GkG: np.ndarray = (pair_GkkG + own_Gk.T[None, :, None, :]).min(axis=1)
    groups = np.arange(len(own_Gk))
    row_GkG[groups, :, groups] = 0.0
    return row_GkG
