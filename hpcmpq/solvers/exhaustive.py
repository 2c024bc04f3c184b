"""`exhaustive`: every assignment, for tests and tiny problems."""

import itertools
import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers.answer import explain, infeasible, solution
from hpcmpq.solvers.presolve import validate


@dataclass(frozen=True)
class ExhaustiveSolver:
    """Tries all assignments of the original problem, without presolve.

    Attributes:
        max_assignments: Larger problems are refused.
    """

    max_assignments: int = 2_000_000

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The optimum by enumeration; it runs to the end whatever `time_limit_s` says.

        Raises:
            UserError: If there are more than `max_assignments`.
        """
        started = time.perf_counter()
        validate(problem)
        size_G = np.bincount(problem.group_P)
        total = float(np.prod(size_G.astype(float)))
        if total > self.max_assignments:
            raise UserError(
                f"{total:.3g} assignments are too many to enumerate (limit {self.max_assignments}); use 'quadratic'"
            )
        best, choice_G = np.inf, None
        offset_G = problem.offset_G
        for position in itertools.product(*[range(size) for size in size_G]):
            candidate_G = offset_G + np.array(position)
            if problem.is_feasible(candidate_G):
                value = problem.objective(candidate_G)
                if value < best:
                    best, choice_G = value, candidate_G
        if choice_G is None:
            return infeasible(explain(problem, 10.0), started)
        return solution(problem, choice_G, best, started, timed_out=False)
