"""Multiple-choice knapsacks, with any budgets and joint tables, solved exactly by CP-SAT.

Axis letters: P options, G groups, C budgets, E products.
"""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmpq.solvers.compact.compact import Compact, JointCost
from hpcmpq.solvers.cp_sat.integer_costs import common_unit, integer_costs
from hpcmpq.solvers.cp_sat.integer_program import PairTerms, Program
from hpcmpq.solvers.search.feasible import feasible_choice, lagrangian_floor

_log = logging.getLogger(__name__)

FINER = 16.0
"""A program is solved again when what its answer excludes makes the steps finer by this factor."""


@dataclass(frozen=True)
class IntegerAnswer:
    """What CP-SAT said.

    Attributes:
        status: ``optimal``, ``feasible``, ``infeasible`` or ``unknown``.
        choice_G: Feasible choice or None.
        bound: Lower bound on the linear objective (with `products`, on the quadratic one); minus infinity where
            nothing is proven.
    """

    status: str
    choice_G: np.ndarray | None
    bound: float


def solve_linear(
    compact: Compact,
    value_P: np.ndarray,
    *,
    time_limit_s: float,
    seed: int,
    hint_G: np.ndarray | None = None,
    products: PairTerms | None = None,
    value_tables: tuple[JointCost, ...] = (),
    workers: int = 2,
) -> IntegerAnswer:
    """Minimise value·x (+ products, + tables) over the compact problem's feasible choices.

    A feasible choice is looked for first; in a knapsack, options that are in no better one are left out. Costs are
    rounded down to integers, so the bound holds; a choice that then exceeds a budget is solved again with costs
    rounded up. Values are rounded too: when the answer excludes options that made the steps coarse, it is solved
    again with finer ones.

    Args:
        compact: Groups, budgets and tables; its objective is not used.
        value_P: Objective of every option, float64 [P].
        time_limit_s: Wall time.
        seed: Of CP-SAT and of the search before it.
        hint_G: Start.
        products: (p, q, value) of linearised products x_p x_q, arrays [E].
        value_tables: Joint tables added to the objective; `budget` is ignored.
        workers: CP-SAT threads.
    """
    from ortools.sat.python import cp_model  # noqa: F401  (loading it takes seconds, which are not the program's)

    deadline = time.perf_counter() + time_limit_s
    everything_P = np.ones(compact.num_options, bool)
    program = Program(compact, np.asarray(value_P, float), products, value_tables, everything_P)
    known_G = feasible_choice(compact, program.value_P, hint_G, seed, deadline - 0.8 * time_limit_s)
    if known_G is not None and not np.isfinite(program.value(known_G)):
        known_G = None
    linear = products is None and not value_tables
    floor = lagrangian_floor(compact, program.value_P) if linear else None
    bound, status = -np.inf if floor is None else floor.value, "unknown" if known_G is None else "feasible"
    unit = np.inf
    while True:
        if known_G is not None and floor is not None:
            program = Program(compact, program.value_P, None, (), floor.alive(program.value(known_G)))
        if unit < FINER * program.unit():
            break
        unit = program.unit()
        answer = _solve(program, deadline, seed, known_G, workers, round_up=False)
        if answer.choice_G is not None and not compact.feasible(answer.choice_G):
            again_G = _solve(program, deadline, seed, known_G, workers, round_up=True).choice_G
            again_G = None if again_G is None or not compact.feasible(again_G) else again_G
            answer = IntegerAnswer("unknown" if again_G is None else "feasible", again_G, answer.bound)
        if answer.status == "infeasible":
            # With options left out, that says that nothing is better than what is known.
            return answer if known_G is None else IntegerAnswer(status, known_G, bound)
        status = answer.status
        if answer.choice_G is not None and (
            known_G is None or program.value(answer.choice_G) <= program.value(known_G)
        ):
            known_G = answer.choice_G
        proven = max(bound, answer.bound)
        if known_G is not None and proven > program.value(known_G) + unit + program.rounding(known_G):
            _log.warning("CP-SAT proves a bound that a feasible choice refutes; it is not used")
            return IntegerAnswer("feasible", known_G, -np.inf if floor is None else floor.value)
        bound = proven
        if status != "optimal" or known_G is None or floor is None:
            break
    if known_G is not None:
        bound = min(bound, program.value(known_G))
        status = "feasible" if status == "unknown" else status
    return IntegerAnswer(status, known_G, bound)


def _solve(
    program: Program, deadline: float, seed: int, hint_G: np.ndarray | None, workers: int, round_up: bool
) -> IntegerAnswer:
    from ortools.sat.python import cp_model

    compact, alive_P, value_P = program.compact, program.alive_P, program.value_P
    unknown = IntegerAnswer("unknown", None, -np.inf)
    model = cp_model.CpModel()
    never = model.new_constant(0)
    literals = [model.new_bool_var("") if alive else never for alive in alive_P.tolist()]
    for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
        model.add_exactly_one(literals[p] for p in range(start, stop) if alive_P[p])
    cells = [
        _table_literals(model, literals, program, table) for table in (*compact.tables, *program.value_tables)
    ]
    for k in range(len(compact.limit_C)):
        own = [(t, c) for t, c in zip(compact.tables, cells, strict=False) if t.budget == k]
        variables = [*literals, *(v for _, (c, _) in own for v in c)]
        cost = np.concatenate(
            [np.where(alive_P, compact.cost_CP[k], 0.0), *(values for _, (_, values) in own)]
        )
        steps, limit = integer_costs(cost, float(compact.limit_C[k]), compact.num_groups + len(own), round_up)
        used = np.flatnonzero(steps)
        model.add(
            cp_model.LinearExpr.weighted_sum([variables[i] for i in used], steps[used].tolist()) <= limit
        )
    unit = program.unit()
    starts = compact.offset_H[:-1]
    least_G = np.minimum.reduceat(np.where(alive_P, value_P, np.inf), starts)
    variables, values = list(literals), [np.where(alive_P, value_P - least_G[compact.group_P], 0.0)]
    shift = float(least_G.sum())
    for cell_variables, cell_values in cells[len(compact.tables) :]:
        least = float(cell_values.min(initial=np.inf)) if len(cell_values) else 0.0
        variables += cell_variables
        values.append(cell_values - least)
        shift += least
    if program.products is not None:
        product_variables = _product_literals(model, literals, program.products, deadline)
        if product_variables is None:
            return unknown
        variables += product_variables
        values.append(program.products[2])
    # Every chosen value is rounded by at most half a unit: one per group and table, all products at worst.
    num_products = 0 if program.products is None else len(program.products[2])
    rounding = 0.5 * (compact.num_groups + len(program.value_tables) + num_products) + 1.0
    value = np.concatenate(values)
    exact = common_unit(value)
    if exact is not None and (np.round(value / exact) * exact == value).all():
        unit, rounding = exact, 0.0
    steps = np.round(value / unit).astype(np.int64)
    used = np.flatnonzero(steps)
    model.minimize(cp_model.LinearExpr.weighted_sum([variables[i] for i in used], steps[used].tolist()))
    if hint_G is not None:
        chosen = set(hint_G.tolist())
        for p in np.flatnonzero(alive_P).tolist():
            model.add_hint(literals[p], p in chosen)
    left_s = deadline - time.perf_counter()
    if left_s <= 0.0:
        return unknown
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = left_s
    solver.parameters.random_seed = seed % (1 << 31)
    solver.parameters.num_workers = workers
    solver.parameters.relative_gap_limit = 1e-9
    # OR-Tools 9.15 proves wrong optima with it (google/or-tools issue 5293).
    solver.parameters.presolve_inclusion_work_limit = 0
    status = _interruptible(solver, model)
    names = {cp_model.OPTIMAL: "optimal", cp_model.FEASIBLE: "feasible", cp_model.INFEASIBLE: "infeasible"}
    name = names.get(status, "unknown")
    choice_G = None
    if name in ("optimal", "feasible"):
        choice_G = np.flatnonzero(
            [bool(a) and solver.value(v) for a, v in zip(alive_P, literals, strict=True)]
        )
    if name == "unknown":
        assert status == cp_model.UNKNOWN, model.validate()
        return unknown  # its `best_objective_bound` is 0 then, whatever the problem
    if name == "infeasible":
        return IntegerAnswer(name, None, np.inf)
    return IntegerAnswer(name, choice_G, float((solver.best_objective_bound - rounding) * unit + shift))


def _interruptible(solver: Any, model: Any) -> Any:
    """The status of a solve that a signal's handler can end: in the main thread none would run before it returns."""
    solver.parameters.catch_sigint_signal = False
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(solver.solve, model)
        try:
            return future.result()
        except BaseException:
            solver.stop_search()
            raise


def _table_literals(
    model: Any, literals: list[Any], program: Program, table: JointCost
) -> tuple[list[Any], np.ndarray]:
    """One Boolean per finite cell of options that may be chosen, tied to them; returns them and their values."""
    starts = program.compact.offset_H[list(table.groups)]
    possible = np.isfinite(table.table)
    for axis, start in enumerate(starts):
        alive = program.alive_P[start : start + table.table.shape[axis]]
        possible = possible & alive.reshape([-1 if a == axis else 1 for a in range(table.table.ndim)])
    index = np.argwhere(possible)
    cells = [model.new_bool_var("") for _ in range(len(index))]
    model.add_exactly_one(cells)
    for axis, start in enumerate(starts):
        for position in range(table.table.shape[axis]):
            rows = np.flatnonzero(index[:, axis] == position)
            model.add(sum(cells[r] for r in rows) == literals[start + position])
    return cells, table.table[tuple(index.T)]


def _product_literals(
    model: Any, literals: list[Any], products: PairTerms, deadline: float
) -> list[Any] | None:
    """Z = x_p x_q for every product, linearised on the side that its sign pulls against; None when time runs out."""
    variables: list[Any] = []
    for p, q, value in zip(*(a.tolist() for a in products), strict=True):
        if len(variables) % 1024 == 0 and time.perf_counter() > deadline:
            return None
        product = model.new_bool_var("")
        if value > 0:
            model.add_bool_or(product, ~literals[p], ~literals[q])
        else:
            model.add_implication(product, literals[p])
            model.add_implication(product, literals[q])
        variables.append(product)
    return variables
