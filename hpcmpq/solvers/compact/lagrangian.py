"""Multipliers of the budgets for a linear objective: the multiple-choice knapsack's Lagrangian dual.

Axis letters: P options, G groups, C budgets.
"""

import numpy as np

from hpcmpq.solvers.compact.compact import Compact


def dual_value(compact: Compact, value_P: np.ndarray, price_C: np.ndarray) -> float:
    """Σ_g min_p (value_p + price·cost_p) − price·limit: a lower bound on value·x for any price ≥ 0.

    Joint tables count with zero, their least value after presolve.
    """
    priced_P = value_P + price_C @ compact.cost_CP
    return float(np.minimum.reduceat(priced_P, compact.offset_H[:-1]).sum() - price_C @ compact.limit_C)


def best_prices(compact: Compact, value_P: np.ndarray, sweeps: int = 3) -> np.ndarray:
    """Prices that (nearly) maximise `dual_value`, float64 [C]: exact for one budget, cyclic for more."""
    num_budgets = len(compact.limit_C)
    price_C = np.zeros(num_budgets)
    for _ in range(sweeps if num_budgets > 1 else 1):
        for k in range(num_budgets):
            price_C[k] = _best_price(compact, value_P, price_C, k)
    return price_C


def _best_price(compact: Compact, value_P: np.ndarray, price_C: np.ndarray, k: int) -> float:
    others_C = price_C.copy()
    others_C[k] = 0.0
    base_P = value_P + others_C @ compact.cost_CP
    cost_P, limit = compact.cost_CP[k], compact.limit_C[k]

    def excess(price: float) -> float:
        return float(cost_P[cheapest(compact, base_P + price * cost_P)].sum() - limit)

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, high * 4
        if high > 1e18:
            return high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def cheapest(compact: Compact, value_P: np.ndarray) -> np.ndarray:
    """The option of least value in every group, int64 [G]; the first one among equals."""
    least_G = np.minimum.reduceat(value_P, compact.offset_H[:-1])
    hits = np.flatnonzero(value_P == np.repeat(least_G, compact.size_G))
    if len(hits) == compact.num_groups:
        return hits
    return hits[np.unique(compact.group_P[hits], return_index=True)[1]]
