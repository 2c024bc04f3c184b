"""Options that were not measured, as the solver sees them: which could lower a solution, were they as cheap as can be.

Let options M have known costs c, all others at least c⁻. With prices λ ≥ 0 of the budgets' costs b within limits B,

    m_g = min_{q in M, q in g} c_q + λ·b_q,    L = Σ_g m_g − λ·B,    U = c·x of an assignment of M within the budgets,

an assignment within the budgets that takes options p outside M, of groups g(p), loses at least
L + Σ_p (c⁻_p + λ·b_p − m_g(p)). So if c⁻_p + λ·b_p − m_g(p) > U − L for every p outside M, no optimal assignment takes
any: they need not be measured.

That is exact without cross terms. With cross terms, c is what each option costs beside the others at the solution x,
c_p + Σ_q H_pq x_q: one option at a time, nothing outside M can lower it.

Source: variable fixing by reduced costs in the multiple-choice knapsack, Sinha & Zoltners 1979.

Axis letters: P options, G groups, C budgets; S options after tied groups are merged.
"""

from dataclasses import replace

import numpy as np

from hpcmpq.problem import Problem
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import dual_value
from hpcmpq.solvers.compact.ties import merge_ties

SOLVE_S = 10.0
"""Solver seconds of a knapsack without cross terms, which takes a fraction of one."""

NEAR = 1e-5
"""Budgets are moved by this share of them to see how much a price jumps there."""


def could_be_chosen(problem: Problem, cost_P: np.ndarray, optimistic_P: np.ndarray) -> np.ndarray:
    """Options that an optimal assignment without cross terms may take, bool [P].

    Args:
        problem: Budgets that add up over groups, ties and allowed options; its objective is not looked at.
        cost_P: Known costs, float64 [P]; NaN where they are not known. Some assignment of known options is within the
            budgets.
        optimistic_P: The least that each option may cost, float64 [P].

    Returns:
        For options of known cost whether they may be taken if they cost what `optimistic_P` says, and all others of
        known cost what `cost_P` says; for the others see above.

    Example:
        >>> from hpcmpq.problem import Budget, Cost
        >>> bits = Cost("bits", "bits", np.array([2.0, 4.0, 8.0, 2.0, 4.0, 8.0]))
        >>> group_P = np.array([0, 0, 0, 1, 1, 1])
        >>> problem = Problem(np.zeros(6), np.zeros((6, 6)), group_P, (Budget(bits, 8.0),))
        >>> known_P = np.array([9.0, 3.0, np.nan, 8.0, 2.0, np.nan])
        >>> could_be_chosen(problem, known_P, np.array([9.0, 3.0, 0.0, 8.0, 2.0, 0.0])).tolist()
        [False, True, False, False, True, False]
    """
    zero_PP = np.broadcast_to(0.0, (len(cost_P), len(cost_P)))
    known_P = np.isfinite(cost_P)
    plain = replace(problem, linear_P=np.where(known_P, cost_P, np.inf), quad_PP=zero_PP, constant=0.0)
    compact = merge_ties(plain)
    assert isinstance(compact, Compact) and not compact.tables, "planning refuses such budgets"
    least = merge_ties(replace(plain, linear_P=np.asarray(optimistic_P, dtype=np.float64)))
    assert isinstance(least, Compact)
    upper = _best(plain, known_P)
    found = [_taken(compact, least.linear_P, price_C, upper) for price_C in _prices(compact, least)]
    taken_S = min(found, key=np.count_nonzero)
    place_GJ = compact.offset_H[compact.super_G][:, None] + np.arange(compact.origin_GJ.shape[1])
    there_GJ = compact.origin_GJ >= 0
    found_P = np.zeros(len(cost_P), dtype=bool)
    found_P[compact.origin_GJ[there_GJ]] = taken_S[place_GJ[there_GJ]]
    return found_P


def _taken(compact: Compact, optimistic_S: np.ndarray, price_C: np.ndarray, upper: float) -> np.ndarray:
    """The rule at some prices: bool [S]."""
    lower = dual_value(compact, compact.linear_P, price_C)
    priced_S = compact.linear_P + price_C @ compact.cost_CP
    least_S = np.minimum.reduceat(priced_S, compact.offset_H[:-1])[compact.group_P]
    above_S = optimistic_S + price_C @ compact.cost_CP - least_S
    return np.asarray(above_S <= max(0.0, upper - lower) + 1e-9 * np.abs(least_S).sum())


def _prices(compact: Compact, least: Compact) -> list[np.ndarray]:
    """Prices to try, [C] each: of known options and of all at their least cost, for budgets a little below and above.

    All are valid, some exclude more: a price jumps where a budget is just kept, and best lies within the jump.
    """
    pairs = [
        (relaxation_prices(each, 1 - NEAR), relaxation_prices(each, 1 + NEAR)) for each in (compact, least)
    ]
    means = [0.5 * (below_C + above_C) for below_C, above_C in pairs]
    return [*means, 0.5 * (means[0] + means[1]), *(price_C for pair in pairs for price_C in pair)]


def relaxation_prices(compact: Compact, factor: float) -> np.ndarray:
    """Duals of the linear relaxation with budgets times a factor, float64 [C]: they raise the bound most.

    Zero where no assignment is within such budgets.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    if not len(compact.limit_C):
        return np.zeros(0)
    known_S = np.flatnonzero(np.isfinite(compact.linear_P))
    cost_S, cost_CS = compact.linear_P[known_S], compact.cost_CP[:, known_S]
    scale = float(np.abs(cost_S).max(initial=0.0)) or 1.0
    scale_C = np.maximum(np.abs(compact.limit_C), 1e-300)
    places = (compact.group_P[known_S], np.arange(len(known_S)))
    found = linprog(
        cost_S / scale,
        A_ub=cost_CS / scale_C[:, None],
        b_ub=compact.limit_C / scale_C * factor,
        A_eq=csr_array((np.ones(len(known_S)), places), shape=(compact.num_groups, len(known_S))),
        b_eq=np.ones(compact.num_groups),
        method="highs",
    )
    if found.status != 0:
        return np.zeros(len(compact.limit_C))
    return np.asarray(np.maximum(0.0, -found.ineqlin.marginals) * scale / scale_C)


def _best(problem: Problem, known_P: np.ndarray) -> float:
    """The least cost of an assignment of known options that was found; infinite if none was."""
    allowed_P = known_P if problem.allowed_P is None else known_P & problem.allowed_P
    cost_P = np.where(known_P, problem.linear_P, 0.0)
    known = replace(problem, linear_P=cost_P, allowed_P=allowed_P)
    found = make_solver("diagonal").solve(known, time_limit_s=SOLVE_S, seed=0)
    return np.inf if found.choice_G is None else float(cost_P[found.choice_G].sum())
