"""A cheap valid bound on the full quadratic model.

Axis letters: P options, G groups, C budgets.
"""

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, dual_value


def full_bound(compact: Compact) -> float:
    """A lower bound on the compact objective: every option takes half its least cross term with each group.

        f(x) ≥ min Σ_p x_p (c_p + ½ Σ_h min_{q in h} H_pq) within the budgets,

    whose Lagrangian dual is evaluated. The Gilmore-Lawler bound of quadratic assignment, for one-hot groups.
    """
    least_P = np.empty(compact.num_options)
    starts = compact.offset_H[:-1]
    for first in range(0, compact.num_options, 512):
        rows = compact.quad_PP[first : first + 512]
        least_P[first : first + 512] = np.minimum.reduceat(rows, starts, axis=1).sum(axis=1)
    value_P = compact.linear_P + 0.5 * least_P
    bound = dual_value(compact, value_P, best_prices(compact, value_P))
    margin = 1e-12 * float(np.abs(value_P).max() * compact.num_groups)
    return bound - margin
