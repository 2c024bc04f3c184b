"""What a linear objective's Lagrangian says before an integer program is asked: a start, a floor, what may be left out.

With prices π ≥ 0 of the budgets, every feasible x has

    value·x ≥ D + Σ_p r_p x_p,      r_p = (value + π·cost)_p − the least of them in p's group ≥ 0,

so an option with D + r_p above the value of a known choice is in no better one. What is left of a knapsack is small,
and its values have a small range: integers resolve them although other options lose a billion times as much.

Axis letters: P options, G groups, C budgets.
"""

from dataclasses import dataclass, replace

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, cheapest
from hpcmpq.solvers.search.state import SearchState, repair
from hpcmpq.solvers.search.tabu import polish


@dataclass(frozen=True)
class Floor:
    """D and r of the module's first lines.

    Attributes:
        value: D, less a margin for rounding.
        rise_P: r, float64 [P].
    """

    value: float
    rise_P: np.ndarray

    def alive(self, known: float) -> np.ndarray:
        """Bool [P]: options that a choice no worse than `known` may have."""
        alive_P: np.ndarray = self.value + self.rise_P <= known
        return alive_P


def lagrangian_floor(compact: Compact, value_P: np.ndarray) -> Floor:
    """The floor at (nearly) the best prices; joint tables count with their least entry."""
    limit_C = compact.limit_C.copy()
    for table in compact.tables:
        limit_C[table.budget] -= table.table.min()
    open_ = replace(compact, limit_C=limit_C, tables=())
    price_C = best_prices(open_, value_P)
    priced_P = value_P + price_C @ compact.cost_CP
    least_G = cheapest(compact, priced_P)
    value = float(priced_P[least_G].sum() - price_C @ limit_C)
    size = float(np.abs(value_P[least_G]).sum() + (price_C @ np.abs(compact.cost_CP[:, least_G])).sum())
    size += float(price_C @ np.abs(limit_C))
    return Floor(value - 1e-13 * size, priced_P - np.repeat(priced_P[least_G], compact.size_G))


def feasible_choice(
    compact: Compact, value_P: np.ndarray, hint_G: np.ndarray | None, seed: int, deadline: float
) -> np.ndarray | None:
    """A feasible choice of low value·x from the hint, the Lagrangian's and the cheapest choice, or None.

    Args:
        compact: Its own objective plays no part.
        value_P: float64 [P].
        hint_G: Feasible or not.
        seed: Of the walk that improves what was found.
        deadline: In `time.perf_counter` seconds.
    """
    num_options = compact.num_options
    flat = replace(
        compact, linear_P=value_P, quad_PP=np.broadcast_to(0.0, (num_options, num_options)), constant=0.0
    )
    starts = [] if hint_G is None else [hint_G]
    price_C = best_prices(flat, value_P)
    starts.append(cheapest(flat, value_P + price_C @ flat.cost_CP))
    starts.append(cheapest(flat, flat.cost_CP.sum(axis=0)))
    best: tuple[np.ndarray, float] | None = None
    for start_G in starts:
        state = SearchState(flat, start_G)
        if repair(state, 4 * flat.num_groups) and flat.feasible(state.choice_G):
            value = float(value_P[state.choice_G].sum())
            if best is None or value < best[1]:
                best = state.choice_G.copy(), value
    if best is None:
        return None
    walked, _ = polish(flat, best, seed, deadline)
    return walked[0] if flat.feasible(walked[0]) else best[0]
