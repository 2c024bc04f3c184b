"""A bound above the objective of a feasible choice is an error, wherever bounds and objectives meet.

Every test puts a bound of that kind where a solver would say it; before, it was lowered and called a proof.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.instances import Shape, make_instance
from hpcmpq.errors import InvalidBound
from hpcmpq.problem import Budget, Cost, CostTerm, Problem, Solution, Termination
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.frontier import sweep
from hpcmpq.solve.frontier_points import SolvedPoints
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.answer import solution
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.cp_sat import integer
from hpcmpq.solvers.least_cost import least_cost
from hpcmpq.solvers.proof import bounding
from hpcmpq.solvers.robust import solve_robust
from tests.synthetic_run import synthetic_model


def tiny() -> Problem:
    """Two groups, least objective −5 at options 0 and 2."""
    quad_PP = np.zeros((4, 4))
    quad_PP[0, 2] = quad_PP[2, 0] = -1.0
    cost = Cost("size", "bytes", np.array([2.0, 1.0, 2.0, 1.0]))
    return Problem(np.array([-1.0, 0.0, -3.0, 0.0]), quad_PP, np.array([0, 0, 1, 1]), (Budget(cost, 4.0),))


def test_rounding_is_forgiven_and_nothing_else() -> None:
    problem, started = tiny(), time.perf_counter()
    best_G = np.array([0, 2])
    answer = solution(problem, best_G, -5.0 + 1e-14, started, timed_out=True)
    assert answer.bound == -5.0 and answer.termination is Termination.OPTIMAL
    with pytest.raises(InvalidBound, match=r"-4\.9999.* was proven .* reaches -5"):
        solution(problem, best_G, -5.0 + 1e-6, started, timed_out=True)


def test_rounding_is_that_of_the_summands() -> None:
    # Summands of 1e9 that cancel to 1: eight digits of the sum are noise.
    problem = replace(
        tiny(), linear_P=np.array([1e9, 0.0, 0.0, 0.0]), constant=1.0 - 1e9, quad_PP=np.zeros((4, 4))
    )
    answer = solution(problem, np.array([0, 2]), 1.0 + 1e-5, time.perf_counter(), timed_out=True)
    assert answer.bound == answer.objective


def test_a_program_without_an_answer_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # CP-SAT's `best_objective_bound` is 0 in that case, which stands for the sum of every group's least loss here.
    solve = integer._interruptible

    def at_once(solver: Any, model: Any) -> Any:
        solver.parameters.max_time_in_seconds = 0.0
        return solve(solver, model)

    monkeypatch.setattr(integer, "_interruptible", at_once)
    problem = make_instance(Shape(8, 4, 0.3, True, 3.0, 0))
    compact = presolve(problem)
    assert isinstance(compact, Compact)
    p_E, q_E = np.nonzero(np.triu(compact.quad_PP))
    products = p_E, q_E, compact.quad_PP[p_E, q_E]
    answer = integer.solve_linear(compact, compact.linear_P, time_limit_s=5.0, seed=0, products=products)
    assert answer.status == "feasible" and answer.bound == -np.inf
    whole = make_solver("linear").solve(problem, time_limit_s=5.0, seed=0)
    best = make_solver("exhaustive").solve(problem, time_limit_s=5.0, seed=0)
    assert whole.bound is not None and whole.bound <= best.objective


def test_a_proof_of_cp_sat_that_a_choice_refutes_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: Any, *arguments: Any, **others: Any) -> integer.IntegerAnswer:
        return integer.IntegerAnswer("optimal", np.array([1, 3]), 7.0)

    monkeypatch.setattr(integer, "_solve", wrong)
    problem = replace(tiny(), quad_PP=np.zeros((4, 4)))
    compact = presolve(problem)
    assert isinstance(compact, Compact)
    answer = integer.solve_linear(compact, compact.linear_P, time_limit_s=5.0, seed=0)
    assert answer.status == "feasible" and compact.original_objective(answer.bound) <= -4.0


def test_the_first_bound_of_a_proof_is_compared_with_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(node: Any, steps: int, deadline: float, ended: Any) -> int:
        node.bound = 3.0
        return steps

    monkeypatch.setattr(bounding, "advance", wrong)
    with pytest.raises(InvalidBound):
        make_solver("quadratic").solve(tiny(), time_limit_s=5.0, seed=0)


def test_a_least_cost_below_its_bound_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **others: Any) -> integer.IntegerAnswer:
        return integer.IntegerAnswer("optimal", np.array([1, 3]), 2.5)

    monkeypatch.setattr("hpcmpq.solvers.least_cost.solve_linear", wrong)
    cost = Cost("time", "s", np.array([2.0, 1.0, 2.0, 0.5]), (CostTerm((0, 1), np.full((2, 2), 0.5)),))
    with pytest.raises(InvalidBound):
        least_cost(tiny(), cost, time_limit_s=5.0, seed=0)


class Wrong:
    """A solver that proves more than is true of the best choice."""

    def solve(self, problem: Problem, **arguments: Any) -> Solution:
        best_G = np.array([0, 2])
        value = problem.objective(best_G)
        return Solution(Termination.TIME_LIMIT, best_G, value, value + 0.5)


def test_a_robust_bound_above_the_robust_objective_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcmpq.solvers.robust.QuadraticSolver", Wrong)
    problem = tiny()
    linear_BP, quad_BPP = np.stack([problem.linear_P] * 2), np.stack([problem.quad_PP] * 2)
    with pytest.raises(InvalidBound):
        solve_robust(problem, linear_BP, quad_BPP, deviations=1.0, time_limit_s=2.0, seed=0)


class Unsolved(SolvedPoints):
    """No point is on disk, and none is kept."""

    def read(self, place: int, problem: Problem) -> Solution | None:
        return None

    def write(self, place: int, solution: Solution) -> None: ...


def test_a_frontier_does_not_pass_on_a_bound_that_a_point_refutes(monkeypatch, tmp_path) -> None:
    model: QuadraticModel = synthetic_model()
    small, large = tiny(), replace(tiny(), budgets=())

    def solve(problem: Problem, *arguments: Any) -> Solution:
        best_G = np.array([0, 2])
        return Solution(Termination.TIME_LIMIT, best_G, -5.0, -6.0 if problem is small else -4.0)

    monkeypatch.setattr("hpcmpq.solve.frontier.find_solution", solve)
    with pytest.raises(InvalidBound):
        sweep([small, large], model, SolverConfig(), lambda done, total: None, Unsolved(tmp_path))
