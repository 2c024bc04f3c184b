"""`quadratic`: search and proven bound for the full model."""

import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers.answer import find_feasible, prepare, solution
from hpcmpq.solvers.bounds import full_bound
from hpcmpq.solvers.tabu import search


@dataclass(frozen=True)
class QuadraticSolver:
    """Tabu search for the assignment, relaxations for the bound."""

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The best assignment found, with a proven bound."""
        started = time.perf_counter()
        compact = prepare(problem, started)
        if isinstance(compact, Solution):
            return compact
        hint = None if hint_G is None else compact.compress(hint_G)
        deadline = started + 0.9 * time_limit_s
        found = search(compact, deadline=deadline, seed=seed, hint_G=hint, max_steps=20_000)
        if found is None:
            feasible = find_feasible(problem, compact, started, time_limit_s, seed)
            if isinstance(feasible, Solution):
                return feasible
            found = search(compact, deadline=deadline, seed=seed, hint_G=feasible)
            found = found or (feasible, compact.objective(feasible))
        bound = compact.original_objective(full_bound(compact))
        return solution(problem, compact.expand(found[0]), bound, started, timed_out=time.perf_counter() > deadline)
