"""`linear` and `linear_lp`: LOCA's linear or integer program with linearised products, by standard solvers.

A product z = x_p x_q of two options is replaced by z ≤ x_p, z ≤ x_q where its coefficient is negative and by
z ≥ x_p + x_q − 1, z ≥ 0 where it is positive. `linear` solves the integer program with CP-SAT; `linear_lp` relaxes it
(GLOP through MathOpt), rounds, and repairs, and its optimum is the bound.

Axis letters: P options, E products.
"""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np

from hpcmpq.cross_terms import any_entry, is_sparse
from hpcmpq.errors import UserError
from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers.answer import explain, find_feasible, infeasible, left, prepare, solution
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import cheapest
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.solvers.diagonal import refuse_cross_terms
from hpcmpq.solvers.proof.gilmore_lawler import full_bound
from hpcmpq.solvers.proof.relaxation import separable_budgets
from hpcmpq.solvers.search.feasible import feasible_choice
from hpcmpq.solvers.search.state import SearchState, repair

THRESHOLD = 1e-6
"""Products below this fraction of the largest cost are left out of the program; the bound counts their least sum."""

MAX_PRODUCTS = 400_000
"""More are refused: neither program would end."""


@dataclass(frozen=True)
class LinearSolver:
    """LP relaxation or integer program.

    Attributes:
        form: ``ip`` or ``lp``.
        products: ``keep`` linearises every product above `THRESHOLD`; ``drop`` is the knapsack form, which
            refuses cross terms unless `drop_cross_terms` is set.
        drop_cross_terms: Same as ``products="drop"`` on a problem with cross terms.
    """

    form: Literal["ip", "lp"] = "ip"
    products: Literal["keep", "drop"] = "keep"
    drop_cross_terms: bool = False

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The program's choice, with objective and bound of the full model.

        Raises:
            UserError: If ``products="drop"`` meets cross terms, or ``keep`` meets more than `MAX_PRODUCTS`.
        """
        started = time.perf_counter()
        compact = prepare(problem, started, time_limit_s)
        if isinstance(compact, Solution):
            return compact
        keep = self.products == "keep" and not self.drop_cross_terms
        crossed = any_entry(compact.quad_PP)
        if not keep:
            refuse_cross_terms(compact.quad_PP, self.drop_cross_terms, "linear")
        products, left_out = self._products(compact) if keep and crossed else (None, 0.0)
        hint = None if hint_G is None else compact.compress(hint_G)
        left_s = max(0.05, time_limit_s - (time.perf_counter() - started))
        if self.form == "lp":
            choice_G, bound, finished = solve_relaxed(compact, products, left_s)
            if choice_G is None:
                soon = time.perf_counter() + 0.1 * time_limit_s
                choice_G = feasible_choice(compact, compact.linear_P, hint, seed, soon)
            if choice_G is None:
                feasible = find_feasible(problem, compact, started, time_limit_s, seed)
                if isinstance(feasible, Solution):
                    return feasible
                choice_G = feasible
        else:
            answer = solve_linear(
                compact, compact.linear_P, time_limit_s=left_s, seed=seed, hint_G=hint, products=products
            )
            if answer.status == "infeasible":
                return infeasible(explain(problem, left(started, time_limit_s)), started)
            if answer.choice_G is None:
                return solution(problem, None, None, started, timed_out=True)
            choice_G, bound, finished = answer.choice_G, answer.bound, answer.status == "optimal"
        # Programs that were cut short say little, or nothing.
        bound = full_bound(compact) if crossed and not keep else max(bound + left_out, full_bound(compact))
        return solution(
            problem,
            compact.expand(choice_G),
            compact.original_objective(bound),
            started,
            timed_out=not finished,
            detail="cross terms were dropped from the choice, not from the objective"
            if crossed and not keep
            else "",
        )

    def _products(self, compact: Compact) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], float]:
        """(p, q, value) of the products kept and the least sum of those left out."""
        if is_sparse(compact.quad_PP):
            raise UserError(
                "linear takes dense cross terms; choose the solver quadratic, or pass quad_PP.toarray()"
            )
        largest = max(float(np.abs(compact.linear_P).max()), float(np.abs(compact.quad_PP).max()))
        upper_PP = np.triu(compact.quad_PP, 1)
        keep_PP = np.abs(upper_PP) > THRESHOLD * largest
        p_E, q_E = np.nonzero(keep_PP)
        if len(p_E) > MAX_PRODUCTS:
            raise UserError(
                f"linear would linearise {len(p_E)} products, more than {MAX_PRODUCTS}; "
                "use solver 'quadratic', or set solver.drop_cross_terms: true"
            )
        rest_PP = np.where(keep_PP, 0.0, upper_PP)
        starts = compact.offset_H[:-1]
        left_out = float(
            np.minimum.reduceat(np.minimum.reduceat(rest_PP, starts, axis=0), starts, axis=1).sum()
        )
        return (p_E, q_E, compact.quad_PP[p_E, q_E]), left_out


def relaxed_solver() -> LinearSolver:
    """The solver `linear_lp`."""
    return LinearSolver(form="lp")


def solve_relaxed(
    compact: Compact, products: tuple[np.ndarray, np.ndarray, np.ndarray] | None, time_limit_s: float
) -> tuple[np.ndarray | None, float, bool]:
    """(rounded and repaired choice or None, LP bound, whether the LP was solved) by GLOP.

    Joint tables enter the budgets as additive underestimates (`relaxation.additive_floor`). Where time runs out, the
    bound is `bounds.full_bound`.
    """
    from ortools.math_opt.python import mathopt

    deadline = time.perf_counter() + time_limit_s
    model = mathopt.Model()
    x_P = [model.add_variable(lb=0.0, ub=1.0) for _ in range(compact.num_options)]
    for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
        model.add_linear_constraint(mathopt.fast_sum(x_P[start:stop]) == 1.0)
    cost_CP, limit_C = separable_budgets(compact)
    for cost_P, limit in zip(cost_CP, limit_C, strict=True):
        model.add_linear_constraint(
            mathopt.fast_sum(float(cost_P[p]) * x_P[p] for p in np.flatnonzero(cost_P)) <= limit
        )
    terms = [float(value) * x for value, x in zip(compact.linear_P, x_P, strict=True)]
    if products is not None:
        for number, (p, q, value) in enumerate(zip(*(a.tolist() for a in products), strict=True)):
            if number % 1024 == 0 and time.perf_counter() > deadline:
                return None, full_bound(compact), False
            z = model.add_variable(lb=0.0, ub=1.0)
            if value > 0:
                model.add_linear_constraint(x_P[p] + x_P[q] - z <= 1.0)
            else:
                model.add_linear_constraint(z - x_P[p] <= 0.0)
                model.add_linear_constraint(z - x_P[q] <= 0.0)
            terms.append(value * z)
    model.minimize(mathopt.fast_sum(terms))
    left_s = max(0.0, deadline - time.perf_counter())
    limits = mathopt.SolveParameters(time_limit=timedelta(seconds=left_s))
    result = mathopt.solve(model, mathopt.SolverType.GLOP, params=limits)
    solved = result.termination.reason == mathopt.TerminationReason.OPTIMAL
    if not solved:
        return None, full_bound(compact), False
    value_P = np.array([result.variable_values(x) for x in x_P])
    state = SearchState(compact, cheapest(compact, -value_P))
    feasible = repair(state, 4 * compact.num_groups)
    # GLOP's optimum is exact to its tolerance of 1e-9 of the objective's size.
    size = float(np.abs(compact.linear_P).max() * compact.num_groups)
    if products is not None:
        size += float(np.abs(products[2]).sum())
    return (state.choice_G if feasible else None), float(result.objective_value()) - 1e-8 * size, True
