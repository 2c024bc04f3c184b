"""`diagonal`: the exact multiple-choice knapsack without cross terms."""

import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.cross_terms import CrossTerms, any_entry
from hpcmpq.errors import UserError
from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers.answer import explain, infeasible, left, prepare, solution
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.solvers.proof.gilmore_lawler import full_bound


@dataclass(frozen=True)
class DiagonalSolver:
    """Minimises c·x exactly (CP-SAT); objective and bound are those of the full model.

    Attributes:
        drop_cross_terms: Accept a problem with cross terms and choose as if they were zero. Cross terms
            inside a tie are not dropped: they are part of the tied group's own cost.
    """

    drop_cross_terms: bool = False

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The best choice of the model without cross terms.

        Raises:
            UserError: If there are cross terms and `drop_cross_terms` is not set.
        """
        started = time.perf_counter()
        compact = prepare(problem, started, time_limit_s)
        if isinstance(compact, Solution):
            return compact
        crossed = refuse_cross_terms(compact.quad_PP, self.drop_cross_terms, "diagonal")
        hint = None if hint_G is None else compact.compress(hint_G)
        answer = solve_linear(compact, compact.linear_P, time_limit_s=time_limit_s, seed=seed, hint_G=hint)
        if answer.status == "infeasible":
            return infeasible(explain(problem, left(started, time_limit_s)), started)
        if answer.choice_G is None:
            return solution(problem, None, None, started, timed_out=True)
        bound = full_bound(compact) if crossed else answer.bound
        choice_G = compact.expand(answer.choice_G)
        detail = "cross terms were dropped from the choice, not from the objective" if crossed else ""
        return solution(
            problem,
            choice_G,
            compact.original_objective(bound),
            started,
            timed_out=answer.status != "optimal",
            detail=detail,
        )


def refuse_cross_terms(quad_PP: CrossTerms, drop: bool, name: str) -> bool:
    """Whether there are cross terms.

    Raises:
        UserError: If there are and `drop` is not set.
    """
    crossed = any_entry(quad_PP)
    if crossed and not drop:
        raise UserError(
            f"solver {name!r} ignores cross terms and this problem has some; use solver 'quadratic', or set "
            "solver: {drop_cross_terms: true} in the config (in Python, drop_cross_terms=True) to ignore them"
        )
    return crossed
