"""The least values that costs can take, and the sentence about a budget below that.

Axis letters: P options.
"""

from dataclasses import replace

import numpy as np

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.solvers.integer import solve_linear
from hpcmpq.solvers.ties import merge_ties


def smallest_cost(
    problem: Problem, name: str, keep: tuple[Budget, ...] = (), time_limit_s: float = 10.0
) -> float | None:
    """The least value of the cost `name` that keeps the budgets `keep`, ties and forbidden options.

    Returns:
        The value in the cost's unit, or None when there is none or it was not found in time.
    """
    cost = next(b.cost for b in problem.budgets if b.cost.name == name)
    num_options = len(problem.linear_P)
    zero_PP = np.broadcast_to(0.0, (num_options, num_options))
    compact = merge_ties(
        replace(problem, linear_P=np.zeros(num_options), quad_PP=zero_PP, budgets=(open_budget(cost), *keep))
    )
    if isinstance(compact, str):
        return None
    value_P = compact.cost_KP[0]
    tables = tuple(t for t in compact.tables if t.budget == 0)
    if not keep and not tables:
        return cost.constant + float(np.minimum.reduceat(value_P, compact.offset_H[:-1]).sum())
    answer = solve_linear(compact, value_P, time_limit_s=time_limit_s, seed=0, value_tables=tables)
    if answer.status != "optimal" or answer.choice_G is None:
        return None
    return cost.value(compact.expand(answer.choice_G), problem.offset_G)


def open_budget(cost: Cost) -> Budget:
    """A limit that never binds, but keeps infinite entries forbidden."""
    finite = [a[np.isfinite(a)] for a in (cost.linear_P, *(term.table for term in cost.terms))]
    return Budget(cost, sum(float(np.abs(a).sum()) for a in finite) + abs(cost.constant) + 1.0)


def infeasible_sentence(problem: Problem, name: str, reachable: float | None, others: bool = False) -> str:
    """What to tell the user about a budget that cannot be met.

    Args:
        problem: The original problem.
        name: The budget's cost.
        reachable: Its smallest reachable value, or None to compute it alone.
        others: Whether `reachable` keeps the other budgets.
    """
    budget = next(b for b in problem.budgets if b.cost.name == name)
    if reachable is None:
        reachable = smallest_cost(problem, name)
    beside = " while the other budgets are kept" if others else ""
    limit = f"budget {name} = {budget.limit:.10g} {budget.cost.unit}"
    if reachable is None:
        return f"{limit} cannot be met{beside}"
    return f"{limit} is below the smallest reachable {reachable:.10g} {budget.cost.unit}{beside}"
