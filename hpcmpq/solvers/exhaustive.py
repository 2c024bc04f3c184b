"""`exhaustive`: every assignment, for tests and tiny problems."""

import itertools
import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.cross_terms import dense_rows
from hpcmpq.errors import UserError
from hpcmpq.problem import Problem, Solution, search_limit
from hpcmpq.solvers.answer import explain, infeasible, solution
from hpcmpq.solvers.compact.presolve import validate


@dataclass(frozen=True)
class ExhaustiveSolver:
    """Tries all assignments of the original problem, without presolve.

    Problems without ties and joint tables are enumerated in two halves: with all choices of either half in
    memory, the objective of every pair is a sum of two vectors and one matrix product.

    Attributes:
        max_assignments: Larger problems are refused.
        max_halved: The same for problems that can be halved.
    """

    max_assignments: int = 2_000_000
    max_halved: int = 400_000_000

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
        halved = (
            not problem.ties and not any(budget.cost.terms for budget in problem.budgets) and len(size_G) > 1
        )
        limit = self.max_halved if halved else self.max_assignments
        if total > limit:
            raise UserError(
                f"{total:.3g} assignments are too many to enumerate (limit {limit}); use 'quadratic'"
            )
        if halved and total > 1000:
            choice_G = enumerate_halves(problem)
            if choice_G is None:
                return infeasible(explain(problem, 10.0), started)
            return solution(problem, choice_G, problem.objective(choice_G), started, timed_out=False)
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


def enumerate_halves(problem: Problem) -> np.ndarray | None:
    """The best choice of a problem without ties and joint tables, or None where there is none."""
    weight_G = np.log(np.bincount(problem.group_P))
    before_G = np.cumsum(weight_G)[:-1]  # halves of about as many choices, whatever the groups' sizes
    middle = 1 + int(np.argmin(np.abs(before_G - 0.5 * weight_G.sum())))
    first_MG, second_NG = (
        _choices(problem, range(middle)),
        _choices(problem, range(middle, problem.num_groups)),
    )
    linear_P, quad_PP = problem.linear_P, dense_rows(problem.quad_PP, np.arange(len(problem.linear_P)))
    quad_PP = 0.5 * (quad_PP + quad_PP.T)

    def own(choice_MG: np.ndarray) -> np.ndarray:
        quad_M = np.zeros(len(choice_MG))
        for i in range(choice_MG.shape[1]):
            for j in range(choice_MG.shape[1]):
                quad_M += quad_PP[choice_MG[:, i], choice_MG[:, j]]
        return linear_P[choice_MG].sum(axis=1) + 0.5 * quad_M

    own_M, own_N = own(first_MG), own(second_NG)
    limit_C = np.array([search_limit(b) - b.cost.constant for b in problem.budgets])
    cost_MC = np.array([b.cost.linear_P[first_MG].sum(axis=1) for b in problem.budgets]).T
    cost_NC = np.array([b.cost.linear_P[second_NG].sum(axis=1) for b in problem.budgets]).T
    onehot_PN = np.zeros((len(linear_P), len(second_NG)))
    onehot_PN[second_NG.T, np.arange(len(second_NG))] = 1.0
    best, choice_G = np.inf, None
    for start in range(0, len(first_MG), 256):
        rows = slice(start, start + 256)
        value_RN = quad_PP[first_MG[rows]].sum(axis=1) @ onehot_PN
        value_RN += own_M[rows, None] + own_N
        for k, limit in enumerate(limit_C):
            value_RN[cost_MC[rows, k][:, None] + cost_NC[:, k] > limit] = np.inf
        row, column = divmod(int(np.argmin(value_RN)), len(second_NG)) if value_RN.size else (0, 0)
        if value_RN.size and value_RN[row, column] < best:
            best, choice_G = value_RN[row, column], np.append(first_MG[start + row], second_NG[column])
    return choice_G


def _choices(problem: Problem, groups: range) -> np.ndarray:
    """All choices of some groups among their allowed options, int64 [M, len(groups)]."""
    allowed_P = np.ones(len(problem.group_P), bool) if problem.allowed_P is None else problem.allowed_P
    options = [np.flatnonzero((problem.group_P == group) & allowed_P) for group in groups]
    grids = np.meshgrid(*options, indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)
