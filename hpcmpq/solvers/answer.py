"""From a compact choice and bound to the `Solution` of the original problem."""

import time

import numpy as np

from hpcmpq.problem import Problem, Solution, Termination, search_limit
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.solvers.reachable import infeasible_sentence, smallest_cost
from hpcmpq.solvers.valid_bound import lowered, objective_size, rounding

PROVEN_GAP = 1e-6
"""Relative gap under which a solution counts as optimal."""


def solution(
    problem: Problem,
    choice_G: np.ndarray | None,
    bound: float | None,
    started: float,
    *,
    timed_out: bool,
    detail: str = "",
) -> Solution:
    """The answer for an original choice and a bound on the original objective.

    A bound above the objective by rounding is lowered to it, and one below it by no more than the rounding of the
    objective's own sum is raised to it: at an objective of zero no gap would ever close otherwise.

    Raises:
        InvalidBound: If the bound is above the objective by more than rounding.
    """
    seconds = time.perf_counter() - started
    if choice_G is None:
        return Solution(
            Termination.NO_SOLUTION,
            None,
            None,
            bound,
            {},
            seconds,
            detail or "no feasible assignment was found in time",
        )
    choice_G = np.asarray(choice_G, dtype=np.int64)
    objective = problem.objective(choice_G)
    if bound is not None:
        bound = lowered(bound, objective, objective_size(problem, choice_G))
        near = objective - bound <= rounding(problem, choice_G)
        bound = objective if near else bound if np.isfinite(bound) else None
    costs = problem.costs(choice_G)
    proven = bound is not None and objective - bound <= PROVEN_GAP * abs(objective)
    otherwise = Termination.TIME_LIMIT if timed_out else Termination.FEASIBLE
    return Solution(
        Termination.OPTIMAL if proven else otherwise, choice_G, objective, bound, costs, seconds, detail
    )


def infeasible(sentence: str, started: float) -> Solution:
    """The answer of a problem that presolve proved infeasible."""
    return Solution(Termination.INFEASIBLE, None, None, None, {}, time.perf_counter() - started, sentence)


def fixed(problem: Problem, compact: Compact, started: float, time_limit_s: float) -> Solution:
    """The answer where presolve left no choice."""
    choice_G = compact.expand(np.zeros(0, dtype=np.int64))
    if not problem.is_feasible(choice_G):
        return infeasible(explain(problem, left(started, time_limit_s)), started)
    return solution(problem, choice_G, problem.objective(choice_G), started, timed_out=False)


def prepare(problem: Problem, started: float, time_limit_s: float) -> Compact | Solution:
    """The compact problem, or the answer where presolve settles it."""
    compact = presolve(problem)
    if isinstance(compact, str):
        return infeasible(compact or explain(problem, left(started, time_limit_s)), started)
    if compact.num_groups == 0:
        return fixed(problem, compact, started, time_limit_s)
    return compact


def left(started: float, time_limit_s: float) -> float:
    """Seconds that are left to explain an infeasible problem: never less than half a second, nor more than ten."""
    return min(10.0, max(0.5, started + time_limit_s - time.perf_counter()))


def find_feasible(
    problem: Problem, compact: Compact, started: float, time_limit_s: float, seed: int
) -> np.ndarray | Solution:
    """A feasible compact choice from CP-SAT, or the answer that there is none (or none in time)."""
    left_s = max(0.05, started + time_limit_s - time.perf_counter())
    answer = solve_linear(compact, np.zeros(compact.num_options), time_limit_s=left_s, seed=seed)
    if answer.status == "infeasible":
        return infeasible(explain(problem, left(started, time_limit_s)), started)
    if answer.choice_G is None:
        return solution(problem, None, None, started, timed_out=True)
    return answer.choice_G


def explain(problem: Problem, time_limit_s: float) -> str:
    """What each budget could be: alone, if there is one that cannot be met so, and else while the others are kept."""
    share = time_limit_s / max(1, 2 * len(problem.budgets))
    for others in (False, True):
        found = []
        for budget in problem.budgets:
            keep = tuple(b for b in problem.budgets if b is not budget) if others else ()
            reachable = smallest_cost(problem, budget.cost, keep, share)
            if reachable is not None and reachable > search_limit(budget):
                found.append(infeasible_sentence(budget, reachable, others))
        if found:
            return " and ".join(found)
    names = ", ".join(b.cost.name for b in problem.budgets)
    if len(problem.budgets) < 2:
        reason = f"every assignment that the rules allow has an infinite {names}"
        return reason if names else "the ties and forbidden options leave no assignment"
    return f"the budgets {names} cannot be met together"
