"""The other way round: the least value of a cost, such as a latency, within limits on others, such as the loss."""

import time
from dataclasses import replace

import numpy as np

from hpcmpq.problem import Cost, Problem, Solution, Termination
from hpcmpq.solvers.answer import PROVEN_GAP, explain
from hpcmpq.solvers.compact.ties import merge_ties
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.solvers.reachable import open_budget
from hpcmpq.solvers.valid_bound import cost_size, lowered


def least_cost(
    problem: Problem, cost: Cost, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
) -> Solution:
    """The choice of least `cost` within the problem's budgets, ties and forbidden options, by CP-SAT.

    Args:
        problem: Its objective plays no part.
        cost: With tables or without; `inf` forbids.
        time_limit_s: Wall time.
        seed: Of CP-SAT.
        hint_G: A start, feasible or not.

    Returns:
        A solution whose objective and bound are values of `cost`.

    Example:
        >>> from hpcmpq.problem import Budget, CostTerm
        >>> together = Cost("s", "s", np.zeros(4), (CostTerm((0, 1), np.array([[1.0, 5.0], [9.0, np.inf]])),))
        >>> loss = Budget(Cost("loss", "", np.array([3.0, 0.0, 3.0, 0.0])), 3.0)
        >>> groups = np.array([0, 0, 1, 1])
        >>> problem = Problem(np.zeros(4), np.zeros((4, 4)), groups, (loss,))
        >>> least_cost(problem, together, time_limit_s=5.0, seed=0).choice_G.tolist()
        [0, 3]
    """
    started = time.perf_counter()
    num_options = len(problem.linear_P)
    zero_PP = np.broadcast_to(0.0, (num_options, num_options))
    priced = replace(problem, linear_P=np.zeros(num_options), quad_PP=zero_PP)
    compact = merge_ties(replace(priced, budgets=(open_budget(cost), *problem.budgets)))

    def infeasible(sentence: str) -> Solution:
        return Solution(Termination.INFEASIBLE, None, None, None, {}, time.perf_counter() - started, sentence)

    if isinstance(compact, str):
        return infeasible(compact)
    answer = solve_linear(
        compact,
        compact.cost_CP[0],
        time_limit_s=time_limit_s,
        seed=seed,
        hint_G=hint_G if hint_G is None else compact.compress(hint_G),
        value_tables=tuple(table for table in compact.tables if table.budget == 0),
    )
    if answer.status == "infeasible":
        return infeasible(explain(replace(priced, budgets=problem.budgets), time_limit_s))
    bound = cost.constant + answer.bound if np.isfinite(answer.bound) else None
    seconds = time.perf_counter() - started
    if answer.choice_G is None:
        return Solution(Termination.NO_SOLUTION, None, None, bound, {}, seconds, "none was found in time")
    choice_G = compact.expand(answer.choice_G)
    value = cost.value(choice_G, problem.offset_G)
    if bound is not None:
        bound = lowered(bound, value, cost_size(cost, choice_G, problem.offset_G))
    proven = bound is not None and value - bound <= PROVEN_GAP * abs(value) + 1e-280
    termination = Termination.OPTIMAL if proven else Termination.TIME_LIMIT
    return Solution(termination, choice_G, value, bound, problem.costs(choice_G), seconds)
