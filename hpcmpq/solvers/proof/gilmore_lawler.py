"""A cheap valid bound on the full quadratic model.

Axis letters: P options, G groups, C budgets.
"""

import numpy as np

from hpcmpq.cross_terms import is_sparse
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, dual_value


def full_bound(compact: Compact) -> float:
    """A lower bound on the compact objective: every option takes half its least cross term with each group.

        f(x) ≥ min Σ_p x_p (c_p + ½ Σ_h min_{q in h} H_pq) within the budgets,

    whose Lagrangian dual is evaluated. The Gilmore-Lawler bound of quadratic assignment, for one-hot groups.
    """
    value_P = compact.linear_P + 0.5 * least_terms(compact)
    bound = dual_value(compact, value_P, best_prices(compact, value_P))
    margin = 1e-12 * float(np.abs(value_P).max() * compact.num_groups)
    return bound - margin


def least_terms(compact: Compact) -> np.ndarray:
    """Σ over groups of every option's least cross term with the group's options, [P]."""
    quad_PP, starts = compact.quad_PP, compact.offset_H[:-1]
    if is_sparse(quad_PP):
        quad_PP.sort_indices()
        row_E = np.repeat(np.arange(compact.num_options), np.diff(quad_PP.indptr))
        pair_E = row_E * compact.num_groups + compact.group_P[quad_PP.indices]
        first = np.flatnonzero(np.diff(pair_E, prepend=-1))
        least = np.minimum.reduceat(quad_PP.data, first) if len(first) else np.zeros(0)
        stored = np.diff(np.append(first, len(pair_E)))
        row, group = np.divmod(pair_E[first], compact.num_groups)
        least = np.where(stored < compact.size_G[group], np.minimum(least, 0.0), least)
        return np.bincount(row, weights=least, minlength=compact.num_options)
    least_P = np.empty(compact.num_options)
    for begin in range(0, compact.num_options, 512):
        rows = slice(begin, begin + 512)
        least_P[rows] = np.minimum.reduceat(quad_PP[rows], starts, axis=1).sum(axis=1)
    return least_P
