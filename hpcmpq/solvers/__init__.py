"""Solvers of the bit-assignment problem, by name.

To add one: write a module here with a class that has

    def solve(self, problem: Problem, *, time_limit_s: float, seed: int, hint_G=None) -> Solution

and one line below. `tests/contracts/test_solvers.py` must pass: exact solvers equal `exhaustive` on random
small problems; ties, forbidden options and `inf` are respected; infeasible problems are reported with the
smallest reachable value of the budget.
"""

from typing import Protocol

import numpy as np

from hpcmpq.problem import Problem, Solution
from hpcmpq.tables import look_up, named_by

SOLVERS = {
    "quadratic": "hpcmpq.solvers.quadratic:QuadraticSolver",
    "quadratic_gpu": "hpcmpq.solvers.on_gpu:GpuSolver",
    "linear": "hpcmpq.solvers.linear:LinearSolver",
    "linear_lp": "hpcmpq.solvers.linear:relaxed_solver",
    "greedy": "hpcmpq.solvers.greedy:GreedySolver",
    "diagonal": "hpcmpq.solvers.diagonal:DiagonalSolver",
    "exhaustive": "hpcmpq.solvers.exhaustive:ExhaustiveSolver",
}

OF_FULL_MODEL = ("quadratic", "quadratic_gpu")
"""The solver that minimises the full model, on the host and with a GPU."""


def on_host(name: str) -> str:
    """The name of the same solver without a GPU, for the small problems of other stages than `solve`.

    Example:
        >>> on_host("quadratic_gpu"), on_host("linear")
        ('quadratic', 'linear')
    """
    return OF_FULL_MODEL[0] if name in OF_FULL_MODEL else name


class Solver(Protocol):
    """Anything that answers a `Problem`."""

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The best assignment found within `time_limit_s` seconds, with a proven bound."""
        ...


def make_solver(name: str) -> Solver:
    """The solver called `name` in `SOLVERS`."""
    return named_by(look_up(SOLVERS, name, "solver"))()
