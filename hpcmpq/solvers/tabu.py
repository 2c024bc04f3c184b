"""The search itself: starts, tabu walks, restarts from perturbed incumbents.

Axis letters: P options, G groups, K budgets, L first legs of a pair.
"""

import time

import numpy as np

from hpcmpq.solvers.compact import Compact
from hpcmpq.solvers.lagrangian import best_prices, cheapest
from hpcmpq.solvers.search import State, repair


def start_choices(compact: Compact, hint_G: np.ndarray | None, deadline: float) -> list[np.ndarray]:
    """Starts: the hint, the diagonal's Lagrangian choice, and the choice with every group's cheapest cost.

    The Lagrangian choice is refined by linearising the objective at its own mean choice.
    """
    starts = [] if hint_G is None else [hint_G]
    value_P = compact.linear_P
    for _ in range(4):
        price_K = best_prices(compact, value_P)
        choice_G = cheapest(compact, value_P + price_K @ compact.cost_KP)
        starts.append(choice_G)
        if time.perf_counter() > deadline:
            break
        value_P = (
            compact.linear_P
            + 0.5 * compact.quad_PP[choice_G].sum(axis=0)
            + 0.5 * (value_P - compact.linear_P)
        )
    starts.append(cheapest(compact, compact.cost_KP.sum(axis=0)))
    return starts


def search(
    compact: Compact,
    *,
    deadline: float,
    seed: int,
    hint_G: np.ndarray | None = None,
    max_steps: int = 10**9,
    first_legs: int = 24,
) -> tuple[np.ndarray, float] | None:
    """The best feasible choice and its compact objective found until the deadline, or None.

    Args:
        compact: The problem, with at least one group.
        deadline: In `time.perf_counter` seconds.
        seed: Of every random draw; the walk depends on nothing else but where the clock stops it.
        hint_G: A start, feasible or not.
        max_steps: Total steps of all walks.
        first_legs: Options tried as first half of a pair in each step.
    """
    rng = np.random.default_rng(seed)
    best: tuple[np.ndarray, float] | None = None
    for start_G in start_choices(compact, hint_G, deadline):
        state = State(compact, start_G)
        if not repair(state, 4 * compact.num_groups):
            continue
        if best is None or state.objective < best[1]:
            best = state.choice_G.copy(), compact.objective(state.choice_G)
        if time.perf_counter() > deadline:
            break
    if best is None:
        return None
    state = State(compact, best[0])
    steps = 0
    patience = 200 + 4 * compact.num_groups
    while time.perf_counter() < deadline and steps < max_steps:
        found, used = _walk(state, best, rng, deadline, min(patience, max_steps - steps), first_legs)
        steps += used
        if found[1] < best[1] - 1e-12 * abs(best[1]):
            best = found
        state.reset(best[0])
        _perturb(state, rng)
    return best[0], compact.objective(best[0])


def _perturb(state: State, rng: np.random.Generator) -> None:
    """Random flips of a few groups, then repair."""
    compact = state.compact
    count = int(rng.integers(2, 3 + max(2, compact.num_groups // 10)))
    for group in rng.permutation(compact.num_groups)[:count]:
        state.flip(int(rng.integers(compact.offset_H[group], compact.offset_H[group + 1])))
    if not repair(state, 4 * compact.num_groups):
        state.reset(cheapest(compact, compact.cost_KP.sum(axis=0)))
        repair(state, 4 * compact.num_groups)


def _walk(
    state: State,
    best: tuple[np.ndarray, float],
    rng: np.random.Generator,
    deadline: float,
    patience: int,
    first_legs: int,
) -> tuple[tuple[np.ndarray, float], int]:
    """Best-improvement tabu walk until `patience` steps bring nothing new; best choice and steps used."""
    compact = state.compact
    if not (state.slack_K >= 0).all():
        return best, patience
    tabu_P = np.zeros(compact.num_options, dtype=np.int64)
    local, since, step = (state.choice_G.copy(), state.objective), 0, 0
    price_K = best_prices(compact, state.marginal_P, sweeps=1)
    while since < patience:
        step, since = step + 1, since + 1
        if step % 8 == 0 and time.perf_counter() > deadline:
            break
        move = _best_move(state, tabu_P > step, price_K, first_legs, local[1])
        if move is None:
            break
        for option in move:
            old = int(state.choice_G[state.group_P[option]])
            state.flip(option)
            tabu_P[old] = step + 5 + int(rng.integers(0, 6 + compact.num_groups // 8))
        if state.objective < local[1] - 1e-12 * max(1e-12, abs(local[1])):
            local, since = (state.choice_G.copy(), state.objective), 0
        if step % 64 == 0:
            price_K = best_prices(compact, state.marginal_P, sweeps=1)
    if local[1] < best[1]:
        return (local[0], compact.objective(local[0])), step
    return best, step


def _best_move(
    state: State, tabu_P: np.ndarray, price_K: np.ndarray, first_legs: int, aspiration: float
) -> tuple[int, ...] | None:
    """The best feasible flip or pair of flips that is not tabu, or beats `aspiration`."""
    compact, group_P, choice_G = state.compact, state.group_P, state.choice_G
    delta_P, cost_KP = state.deltas()
    blocked_P = tabu_P.copy()
    blocked_P[choice_G] = True
    fits_P = (cost_KP <= state.slack_K[:, None]).all(axis=0)
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
    priced_P = np.where(blocked_P, np.inf, delta_P + price_K @ cost_KP)
    count = min(first_legs, int((~blocked_P).sum()))
    if count == 0 or compact.num_groups < 2:
        return move if best < np.inf else None
    legs_L = np.argpartition(priced_P, count - 1)[:count]
    old_L = choice_G[group_P[legs_L]]
    cross_LP = compact.quad_PP[legs_L] - compact.quad_PP[old_L]
    cross_LP -= cross_LP[:, choice_G][:, group_P]
    cross_LP += (delta_P + 0.0)[None, :]
    cross_LP += delta_P[legs_L][:, None]
    allowed_LP = ~blocked_P[None, :] & (group_P[legs_L][:, None] != group_P[None, :])
    for k in range(len(state.slack_K)):
        allowed_LP &= cost_KP[k][None, :] <= (state.slack_K[k] - cost_KP[k, legs_L])[:, None]
    cross_LP[~allowed_LP] = np.inf
    flat = int(np.argmin(cross_LP))
    leg, partner = divmod(flat, compact.num_options)
    if cross_LP[leg, partner] < best:
        pair = (int(legs_L[leg]), int(partner))
        if not compact.tables or _pair_feasible(state, pair):
            return pair
    return move if best < np.inf else None


def _pair_feasible(state: State, pair: tuple[int, int]) -> bool:
    """Exact check: with joint tables the costs of two flips need not add."""
    choice_G = state.choice_G.copy()
    choice_G[state.group_P[list(pair)]] = pair
    return state.compact.feasible(choice_G)
