"""The doubly nonnegative relaxation's polyhedral side: what the lifted matrix of a feasible x must satisfy.

Y = (1, x, s)(1, x, s)ᵀ of a feasible x is nonnegative; its block of two different groups is a joint
distribution of their options (sums to 1, zero on excluded pairs), its own-group block is the diagonal of the
group's distribution, equal to the first row; slack entries are at most the largest slack. Linear functions
over this set are minimised, and points projected onto it, block by block.

Axis letters: N lifted coordinates, P options, X padded options G·k, G groups, k padded options, K budgets,
B group pairs i < j.
"""

from dataclasses import dataclass

import numpy as np

from hpcmpq.solvers.compact import Compact
from hpcmpq.solvers.lift import Lift, make_lift


@dataclass(frozen=True)
class Relaxation:
    """minimise ⟨objective_NN, Y⟩ over the set above, intersected with {L R Lᵀ: R ⪰ 0}.

    Attributes:
        lift: Layout.
        objective_NN: C, with ½ H between groups and c on the diagonal.
        allowed_XX: Pairs that may be chosen together, on the diagonal existing options, bool [X, X].
        slack_limit_KX: Largest (scaled) slack beside every option, [K, X].
        slack_limit_K: Largest slack.
        unit_K: The limits that the slacks are measured in, in the compact problem's units.
    """

    lift: Lift
    objective_NN: np.ndarray
    allowed_XX: np.ndarray
    slack_limit_KX: np.ndarray
    slack_limit_K: np.ndarray
    unit_K: np.ndarray


def make_relaxation(compact: Compact, scale_P: np.ndarray | None = None) -> Relaxation:
    """The relaxation of a compact problem.

    A joint table of two groups forbids its infinite pairs; of every table the budget gets the least cost by
    option, split evenly, which is a valid underestimate.
    """
    cost_KP, limit_K = separable_budgets(compact)
    used_K = limit_K > 1e-12
    cost_KP, limit_K = cost_KP[used_K], limit_K[used_K]
    unit_K = limit_K
    cost_KP, limit_K = cost_KP / unit_K[:, None], np.ones(len(unit_K))
    lift = make_lift(compact, cost_KP, limit_K, np.ones(compact.num_options) if scale_P is None else scale_P)
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
    slack_limit_KX = np.zeros((len(limit_K), padded))
    least_KG = np.minimum.reduceat(cost_KP, compact.offset_H[:-1], axis=1)
    slack_limit_K = limit_K - least_KG.sum(axis=1)
    slack_limit_KX[:, lift.column_P] = slack_limit_K[:, None] - (cost_KP - least_KG[:, compact.group_P])
    return Relaxation(
        lift,
        objective_NN,
        allowed_XX,
        np.maximum(slack_limit_KX, 0.0),
        np.maximum(slack_limit_K, 0.0),
        unit_K,
    )


def separable_budgets(compact: Compact) -> tuple[np.ndarray, np.ndarray]:
    """Costs and limits, float64 [K, P] and [K], that every feasible choice keeps although tables are gone.

    A table T is replaced by Σ_i u_i(k_i) + r ≤ T: u is its least-squares additive fit (infinite entries
    left out by an iteration that fills them with the fit), r the least residual.
    """
    cost_KP, limit_K = compact.cost_KP.copy(), compact.limit_K.copy()
    for table in compact.tables:
        parts, least = additive_floor(table.table)
        for group, part in zip(table.groups, parts, strict=True):
            start = compact.offset_H[group]
            cost_KP[table.budget, start : start + len(part)] += part
        limit_K[table.budget] -= least
    starts = compact.offset_H[:-1]
    shift_KG = np.minimum.reduceat(cost_KP, starts, axis=1)
    return cost_KP - shift_KG[:, compact.group_P], limit_K - shift_KG.sum(axis=1)


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


def block_columns(lift: Lift) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices into [X, X] of every block of two groups i < j, and of its mirror, int64 [k·k, B] each."""
    width = lift.width
    first_B, second_B = np.triu_indices(lift.num_groups, 1)
    row, column = np.divmod(np.arange(width * width), width)
    rows = first_B[None, :] * width + row[:, None]
    columns = second_B[None, :] * width + column[:, None]
    return rows * lift.padded + columns, columns * lift.padded + rows


class Projector:
    """Projects lifted matrices; keeps the index arrays of one relaxation."""

    def __init__(self, relaxation: Relaxation, dtype: type) -> None:
        self.relaxation, self.lift = relaxation, relaxation.lift
        self.upper, self.lower = block_columns(self.lift)
        self.dtype = dtype
        scale_X = self.lift.scale_X
        self.weight_EB = np.outer(scale_X, scale_X).ravel()[self.upper].astype(dtype)
        scale_kG = scale_X.reshape(self.lift.num_groups, self.lift.width).T
        self.own_weight_kG: np.ndarray = (scale_kG**4 + 2.0 * scale_kG**2).astype(dtype)
        self.scale_X: np.ndarray = scale_X.astype(dtype)
        self.slack_limit_KX = (relaxation.slack_limit_KX * scale_X).astype(dtype)
        self.set_allowed(relaxation.allowed_XX)

    def set_allowed(self, allowed_XX: np.ndarray) -> None:
        """Exclude more pairs."""
        blocks = allowed_XX.ravel()[self.upper]
        self.penalty: np.ndarray | None = (
            None if blocks.all() else np.where(blocks, 0.0, -np.inf).astype(self.dtype)
        )
        exists = np.diagonal(allowed_XX).reshape(self.lift.num_groups, self.lift.width).T
        self.own_penalty: np.ndarray = np.where(exists, 0.0, -np.inf).astype(self.dtype)

    def project(self, w_NN: np.ndarray) -> np.ndarray:
        """The nearest point of the polyhedral set to a symmetric matrix, [N, N]."""
        lift = self.lift
        padded, width = lift.padded, lift.width
        inner = slice(1, 1 + padded)
        out_NN = np.zeros_like(w_NN)
        w_XX = np.ascontiguousarray(w_NN[inner, inner])
        blocks = w_XX.ravel()[self.upper]
        blocks *= self.weight_EB
        if self.penalty is not None:
            blocks += self.penalty
        blocks = simplex(blocks, self.weight_EB**2)
        blocks *= self.weight_EB
        out_XX = np.zeros_like(w_XX)
        out_XX.ravel()[self.upper] = blocks
        out_XX.ravel()[self.lower] = blocks
        # A group's distribution appears three times: on the diagonal, in the first row and column.
        own_X = self.scale_X**2 * np.diagonal(w_XX) + 2.0 * self.scale_X * w_NN[0, inner]
        own_kG = own_X.reshape(lift.num_groups, width).T + self.own_penalty
        own_X = simplex(own_kG, self.own_weight_kG).T.ravel()
        out_XX[np.arange(padded), np.arange(padded)] = self.scale_X**2 * own_X
        out_NN[inner, inner] = out_XX
        out_NN[0, inner] = out_NN[inner, 0] = self.scale_X * own_X
        out_NN[0, 0] = 1.0
        if lift.num_budgets:
            relaxation, slack = self.relaxation, slice(1 + padded, None)
            out_NN[slack, 0] = out_NN[0, slack] = np.clip(w_NN[slack, 0], 0.0, relaxation.slack_limit_K)
            out_NN[slack, inner] = np.clip(w_NN[slack, inner], 0.0, self.slack_limit_KX)
            out_NN[inner, slack] = out_NN[slack, inner].T
            roof_KK = np.outer(relaxation.slack_limit_K, relaxation.slack_limit_K)
            out_NN[slack, slack] = np.clip(w_NN[slack, slack], 0.0, roof_KK)
        return out_NN


def simplex(linear_EB: np.ndarray, weight_EB: np.ndarray) -> np.ndarray:
    """The columns v ≥ 0, Σ v = 1 that minimise Σ ½ weight v² − linear v; linear −inf gives 0.

    v = max(linear − t, 0) / weight with a threshold t per column, found by Newton's method from the left,
    where Σ v is convex and decreasing in t: it ends at the exact threshold after finitely many steps.
    """
    inverse_EB = 1.0 / weight_EB
    finite_EB = np.where(np.isfinite(linear_EB), linear_EB, 0.0) * inverse_EB
    threshold_B = (linear_EB - weight_EB).max(axis=0)
    for _ in range(len(linear_EB) + 1):
        active_EB = linear_EB > threshold_B
        mass_B = np.where(active_EB, inverse_EB, 0.0).sum(axis=0)
        new_B = (np.where(active_EB, finite_EB, 0.0).sum(axis=0) - 1.0) / mass_B
        if not (new_B > threshold_B + 1e-6 * (1.0 + np.abs(threshold_B))).any():
            break
        threshold_B = np.maximum(new_B, threshold_B)
    return np.maximum(linear_EB - threshold_B, 0.0) * inverse_EB


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
        own_X = own_X + 2.0 * np.minimum(m_NN[slack, inner] * relaxation.slack_limit_KX, 0.0).sum(axis=0)
        value += 2.0 * float(np.minimum(m_NN[slack, 0] * relaxation.slack_limit_K, 0.0).sum())
        roof_KK = np.outer(relaxation.slack_limit_K, relaxation.slack_limit_K)
        value += float(np.minimum(m_NN[slack, slack] * roof_KK, 0.0).sum())
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
