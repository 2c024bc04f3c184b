"""The search: starts, rounds of annealing, and tabu walks over flips and budget-keeping pair swaps.

Axis letters: P options, G groups, C budgets, L first legs of a pair.
"""

import time

import numpy as np

from hpcmpq.cross_terms import dense_rows, rows_sum
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, cheapest
from hpcmpq.solvers.search.anneal import anneal
from hpcmpq.solvers.search.state import SearchState, repair


def start_choices(compact: Compact, hint_G: np.ndarray | None, deadline: float) -> list[np.ndarray]:
    """Starts: the hint, the diagonal's Lagrangian choice, and the choice with every group's cheapest cost.

    The Lagrangian choice is refined by linearising the objective at its own mean choice.
    """
    starts = [] if hint_G is None else [hint_G]
    value_P = compact.linear_P
    for _ in range(4):
        price_C = best_prices(compact, value_P)
        choice_G = cheapest(compact, value_P + price_C @ compact.cost_CP)
        starts.append(choice_G)
        if time.perf_counter() > deadline:
            break
        value_P = (
            compact.linear_P + 0.5 * rows_sum(compact.quad_PP, choice_G) + 0.5 * (value_P - compact.linear_P)
        )
    starts.append(cheapest(compact, compact.cost_CP.sum(axis=0)))
    return starts


def search(
    compact: Compact,
    *,
    deadline: float,
    seed: int,
    hint_G: np.ndarray | None = None,
    rounds: int = 12,
    first_legs: int = 8,
) -> tuple[np.ndarray, float] | None:
    """The best feasible choice and its compact objective found until the deadline, or None.

    Rounds of annealing, each with twice the sweeps of the one before and a tabu walk from its result, until
    the best objective has come up three times in rounds long enough to tell.

    Args:
        compact: The problem, with at least one group.
        deadline: In `time.perf_counter` seconds.
        seed: Of every random draw; the result depends on nothing else but where the clock stops it.
        hint_G: A start, feasible or not.
        rounds: At most; 0 only repairs the starts.
        first_legs: Options tried as first half of a pair in each step of a walk.
    """
    rng = np.random.default_rng(seed)
    best: tuple[np.ndarray, float] | None = None
    starts = start_choices(compact, hint_G, deadline)
    for start_G in starts:
        state = SearchState(compact, start_G)
        if repair(state, 4 * compact.num_groups):
            value = compact.objective(state.choice_G)
            if best is None or value < best[1]:
                best = state.choice_G.copy(), value
        if best is not None and time.perf_counter() > deadline:
            return best
    hits, sweeps = 0, min(FIRST_SWEEPS, max(1, FIRST_CHANCES // compact.num_groups))
    for _ in range(rounds):
        if time.perf_counter() > deadline or hits >= 3:
            break
        found = anneal(compact, starts[0] if best is None else best[0], sweeps, rng, deadline)
        long_enough = sweeps >= TELLING_SWEEPS * compact.num_groups
        sweeps = min(2 * sweeps, 32 * FIRST_SWEEPS)
        if found is None:
            hits += int(long_enough and best is not None)  # nothing feasible but what is known
            continue
        state = SearchState(compact, found[0])
        found, _ = _walk(state, found, rng, deadline, 60, first_legs)
        tolerance = 1e-9 * abs(found[1])
        if best is None or found[1] < best[1] - tolerance:
            best, hits = found, int(long_enough)
        elif found[1] <= best[1] + tolerance:
            hits += int(long_enough)
    return best


FIRST_SWEEPS = 500
"""Sweeps of the first annealing."""

FIRST_CHANCES = 1_000_000
"""Groups times sweeps of the first annealing, at most: with 15,000 groups 500 sweeps took 18 s, and an annealing that
the clock cuts is worth little, while 66 sweeps came within 0.02 % of the best in 3 s."""

TELLING_SWEEPS = 5
"""Sweeps per group from which on an annealing that comes back to the best objective counts: with 224 groups,
short ones came back three times to a choice 0.09 % above the best."""


def polish(
    compact: Compact, found: tuple[np.ndarray, float], seed: int, deadline: float
) -> tuple[tuple[np.ndarray, float], int]:
    """A short tabu walk from a feasible choice."""
    return _walk(SearchState(compact, found[0]), found, np.random.default_rng(seed), deadline, 60, 8)


def _walk(
    state: SearchState,
    best: tuple[np.ndarray, float],
    rng: np.random.Generator,
    deadline: float,
    patience: int,
    first_legs: int,
) -> tuple[tuple[np.ndarray, float], int]:
    """Best-improvement tabu walk until `patience` steps bring nothing new; best choice and steps used."""
    compact = state.compact
    tabu_P = np.zeros(compact.num_options, dtype=np.int64)
    local, since, step = (state.choice_G.copy(), state.objective), 0, 0
    price_C = best_prices(compact, state.marginal_P, sweeps=1)
    while since < patience:
        step, since = step + 1, since + 1
        if step % 8 == 0 and time.perf_counter() > deadline:
            break
        move = _best_move(state, tabu_P > step, price_C, first_legs, local[1])
        if move is None:
            break
        for option in move:
            old = int(state.choice_G[state.group_P[option]])
            state.flip(option)
            tabu_P[old] = step + 5 + int(rng.integers(0, 6 + compact.num_groups // 8))
        if state.objective < local[1] - 1e-12 * max(1e-12, abs(local[1])):
            local, since = (state.choice_G.copy(), state.objective), 0
        if step % 256 == 0:
            price_C = best_prices(compact, state.marginal_P, sweeps=1)
    if local[1] < best[1]:
        return (local[0], compact.objective(local[0])), step
    return best, step


def _best_move(
    state: SearchState, tabu_P: np.ndarray, price_C: np.ndarray, first_legs: int, aspiration: float
) -> tuple[int, ...] | None:
    """The best feasible flip or pair of flips that is not tabu, or beats `aspiration`."""
    compact, group_P, choice_G = state.compact, state.group_P, state.choice_G
    delta_P, cost_CP = state.deltas()
    blocked_P = tabu_P.copy()
    blocked_P[choice_G] = True
    fits_P = (cost_CP <= state.slack_C[:, None]).all(axis=0)
    single_P = np.where(fits_P & ~blocked_P, delta_P, np.inf)
    best_single = int(np.argmin(single_P))
    best, move = float(single_P[best_single]), (best_single,)
    free_single_P = np.where(fits_P, delta_P, np.inf)
    free_single_P[choice_G] = np.inf
    lucky = int(np.argmin(free_single_P))
    if (
        state.objective + free_single_P[lucky] < aspiration - 1e-12 * abs(aspiration)
        and free_single_P[lucky] < best
    ):
        best, move = float(free_single_P[lucky]), (lucky,)
    priced_P = np.where(blocked_P, np.inf, delta_P + price_C @ cost_CP)
    count = min(first_legs, int((~blocked_P).sum()))
    if count == 0 or compact.num_groups < 2:
        return move if best < np.inf else None
    legs_L = np.argpartition(priced_P, count - 1)[:count]
    old_L = choice_G[group_P[legs_L]]
    cross_LP = dense_rows(compact.quad_PP, legs_L)
    cross_LP -= dense_rows(compact.quad_PP, old_L)
    cross_LP -= np.repeat(cross_LP[:, choice_G], compact.size_G, axis=1)
    cross_LP += delta_P
    cross_LP += delta_P[legs_L][:, None]
    cross_LP[:, blocked_P] = np.inf
    for leg, group in enumerate(group_P[legs_L].tolist()):
        cross_LP[leg, compact.offset_H[group] : compact.offset_H[group + 1]] = np.inf
    for k in range(len(state.slack_C)):
        cross_LP[cost_CP[k] > (state.slack_C[k] - cost_CP[k, legs_L])[:, None]] = np.inf
    leg, partner = divmod(int(np.argmin(cross_LP)), compact.num_options)
    if cross_LP[leg, partner] < best:
        pair = (int(legs_L[leg]), partner)
        if not compact.tables or _pair_feasible(state, pair):
            return pair
    return move if best < np.inf else None


def _pair_feasible(state: SearchState, pair: tuple[int, int]) -> bool:
    """Exact check: with joint tables the costs of two flips need not add."""
    choice_G = state.choice_G.copy()
    choice_G[state.group_P[list(pair)]] = pair
    return state.compact.feasible(choice_G)
