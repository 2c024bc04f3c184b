"""The least values that costs can take, and the sentence about a budget below that.

Axis letters: P options.
"""

import math
from dataclasses import replace

import numpy as np

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.solvers.compact.ties import merge_ties
from hpcmpq.solvers.cp_sat.integer import solve_linear


def smallest_cost(
    problem: Problem, cost: Cost, keep: tuple[Budget, ...] = (), time_limit_s: float = 10.0
) -> float | None:
    """The least value of `cost` that keeps the budgets `keep`, ties, forbidden options and infinite costs.

    Returns:
        The value in the cost's unit, or None when there is none or it was not found in time.
    """
    num_options = len(problem.linear_P)
    allowed_P = np.ones(num_options, bool) if problem.allowed_P is None else problem.allowed_P.astype(bool)
    open_ = [open_budget(cost)]
    for budget in problem.budgets:
        if budget.cost is not cost and not any(b is budget for b in keep) and budget.limit != math.inf:
            allowed_P = allowed_P & np.isfinite(budget.cost.linear_P)
            if any(np.isinf(term.table).any() for term in budget.cost.terms):
                open_.append(open_budget(budget.cost))
    compact = merge_ties(
        replace(
            problem,
            linear_P=np.zeros(num_options),
            quad_PP=np.broadcast_to(0.0, (num_options, num_options)),
            budgets=(*open_, *keep),
            allowed_P=allowed_P,
        )
    )
    if isinstance(compact, str):
        return None
    value_P = compact.cost_CP[0]
    tables = tuple(t for t in compact.tables if t.budget == 0)
    if not keep and not compact.tables:
        return cost.constant + float(np.minimum.reduceat(value_P, compact.offset_H[:-1]).sum())
    answer = solve_linear(compact, value_P, time_limit_s=time_limit_s, seed=0, value_tables=tables)
    if answer.status != "optimal" or answer.choice_G is None:
        return None
    return cost.value(compact.expand(answer.choice_G), problem.offset_G)


def open_budget(cost: Cost) -> Budget:
    """A limit that never binds, but keeps infinite entries forbidden."""
    finite = [a[np.isfinite(a)] for a in (cost.linear_P, *(term.table for term in cost.terms))]
    return Budget(cost, sum(float(np.abs(a).sum()) for a in finite) + abs(cost.constant) + 1.0)


def infeasible_sentence(budget: Budget, reachable: float, others: bool = False) -> str:
    """What to tell the user about a budget that cannot be met.

    Args:
        budget: The budget.
        reachable: The smallest reachable value of its cost.
        others: Whether `reachable` keeps the other budgets.
    """
    unit, digits = budget.cost.unit, 10
    if f"{budget.limit:.{digits}g}" == f"{reachable:.{digits}g}":
        digits = 17
    beside = " while the other budgets are kept" if others else ""
    return (
        f"budget {budget.cost.name} = {budget.limit:.{digits}g} {unit} is below the smallest reachable "
        f"{reachable:.{digits}g} {unit}{beside}"
    )
