"""Simulated annealing of the priced objective, many groups per vectorised sweep.

At temperature T a sweep draws for every group an option from exp(−(marginal + price·cost) / T) by the Gumbel
trick; the few groups whose draw differs from their choice are then flipped one after the other, each checked
again against the marginals of that moment. Prices follow the budgets: up while over the limit, down while
there is slack, so the walk hovers around the limits; its best feasible moments are kept and the end repaired.

Axis letters: P options, G groups, C budgets.
"""

import time

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, cheapest
from hpcmpq.solvers.search.state import SearchState, repair

COOLING = 40.0
"""First temperature over last."""


def anneal(
    compact: Compact, start_G: np.ndarray, sweeps: int, rng: np.random.Generator, deadline: float
) -> tuple[np.ndarray, float] | None:
    """The best feasible choice seen and its objective, or None."""
    state = SearchState(compact, start_G)
    price_C = np.maximum(best_prices(compact, state.marginal_P, sweeps=1), 1e-9)
    hottest = first_temperature(state, price_C)
    pool = rng.gumbel(size=max(1 << 16, 8 * compact.num_options))
    best: tuple[np.ndarray, float] | None = None
    for sweep in range(sweeps):
        temperature = hottest * COOLING ** -(sweep / max(1, sweeps - 1))
        shift = int(rng.integers(0, len(pool) - compact.num_options))
        noise_P = pool[shift : shift + compact.num_options] * temperature
        drawn_G = cheapest(compact, state.marginal_P + price_C @ state.cost_CP - noise_P)
        changed = np.flatnonzero(drawn_G != state.choice_G)
        if len(changed) > 1:
            changed = rng.permutation(changed)
        for position, group in enumerate(changed.tolist()):
            option, old = int(drawn_G[group]), int(state.choice_G[group])
            if position:  # the marginals have moved since the draw
                rise = state.marginal_P[option] - noise_P[option] - state.marginal_P[old] + noise_P[old]
                rise += price_C @ (state.cost_CP[:, option] - state.cost_CP[:, old])
                if rise > 0:
                    continue
            state.flip(option)
            if (state.slack_C >= 0).all() and (best is None or state.objective < best[1]):
                best = state.choice_G.copy(), state.objective
        if len(price_C):
            over_C = np.where(np.isfinite(state.slack_C), -state.slack_C, 1.0)
            price_C = np.clip(price_C * np.exp(np.clip(PRICE_GAIN * over_C, -0.05, 0.05)), *PRICES)
        if sweep % 16 == 0 and time.perf_counter() > deadline:
            break
    state.reset(state.choice_G if best is None or sweep == sweeps - 1 else best[0])
    if repair(state, 4 * compact.num_groups) and (best is None or state.objective < best[1]):
        best = state.choice_G.copy(), state.objective
    if best is None:
        return None
    return best[0], compact.objective(best[0])


PRICE_GAIN = 2.0
"""Relative change of a price per sweep for an excess of the whole range of the budget."""


PRICES = 1e-12, 1e12
"""Least and largest price: where no choice or every choice is feasible they would drift to zero or infinity."""


def first_temperature(state: SearchState, price_C: np.ndarray) -> float:
    """0.3 of the upper quartile over groups of what its second-best option loses, at the current prices.

    At 224 and 560 groups a hotter start wastes sweeps and a colder one (0.1) stays in poorer basins.
    """
    compact = state.compact
    priced_P = state.marginal_P + price_C @ state.cost_CP
    best_G = cheapest(compact, priced_P)
    rest_P = priced_P.copy()
    rest_P[best_G] = np.inf
    loss_G = np.minimum.reduceat(rest_P, compact.offset_H[:-1]) - priced_P[best_G]
    return max(0.3 * float(np.quantile(loss_G, 0.75)), 1e-12)
