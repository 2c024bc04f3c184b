"""Exclusion of options and pairs that a certificate proves to be in no better choice.

Axis letters: P options, G groups, C budgets.
"""

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof.node import Node, padded_pairs


def exclude(node: Node, cutoff: float) -> int:
    """Exclude the options and pairs whose forced bound reaches the cutoff; how many options remain."""
    bound = node.last
    if bound is None:
        return int(np.diagonal(node.allowed_PP).sum())
    minimum, lift = bound.minimum, node.relaxation.lift
    columns = lift.column_P
    if not np.isfinite(minimum.value):
        return 0
    slack = cutoff - bound.value
    rise_P = minimum.rise_X[columns]
    options_P = (rise_P <= slack) & np.diagonal(node.allowed_PP)
    group_P = node.compact.group_P
    # Options that are gone have infinite excesses; `options_P` keeps them out.
    gone_P = ~np.isfinite(rise_P)
    row_PG = np.where(gone_P[:, None], 0.0, minimum.row_XG[columns])
    row_PP = (
        np.where(gone_P, 0.0, minimum.own_X[columns])[:, None]
        + row_PG.sum(axis=1)[:, None]
        - row_PG[:, group_P]
    )
    pair_PP = minimum.pair_XX[np.ix_(columns, columns)] + row_PP + row_PP.T
    own = np.arange(len(group_P))
    pair_PP[own, own] = 0.0
    allowed_PP = node.allowed_PP & (pair_PP <= slack) & options_P[:, None] & options_P[None, :]
    for _ in range(3):
        # An option whose pairs with some group are all excluded is excluded itself.
        support_PG = np.maximum.reduceat(allowed_PP, node.compact.offset_H[:-1], axis=1)
        alive_P = support_PG.all(axis=1)
        if (alive_P == options_P).all():
            break
        options_P = options_P & alive_P
        allowed_PP &= options_P[:, None] & options_P[None, :]
    if node.compact.num_options and len(node.compact.limit_C):
        costly = _too_costly(node.compact, options_P)
        options_P = options_P & ~costly
        allowed_PP &= options_P[:, None] & options_P[None, :]
    node.allowed_PP = allowed_PP
    node.projector.set_allowed(padded_pairs(node))
    return (
        int(options_P.sum())
        if np.add.reduceat(options_P.astype(int), node.compact.offset_H[:-1]).all()
        else 0
    )


def _too_costly(compact: Compact, options_P: np.ndarray) -> np.ndarray:
    starts = compact.offset_H[:-1]
    cost_CP = np.where(options_P, compact.cost_CP, np.inf)
    least_CG = np.minimum.reduceat(cost_CP, starts, axis=1)
    if not np.isfinite(least_CG).all():
        return np.zeros(len(options_P), bool)
    total_CP = cost_CP - least_CG[:, compact.group_P] + least_CG.sum(axis=1)[:, None]
    return (total_CP > compact.limit_C[:, None] + 1e-12 * (1.0 + np.abs(compact.limit_C))[:, None]).any(
        axis=0
    ) & options_P
