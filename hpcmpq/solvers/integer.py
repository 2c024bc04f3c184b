"""Multiple-choice knapsacks, with any budgets and joint tables, solved exactly by CP-SAT.

Axis letters: P options, G groups, K budgets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmpq.solvers.compact import Compact, Table

COST_STEPS = 2.0**40
"""Integer steps in a budget's range where its costs have no common unit."""

VALUE_STEPS = 2.0**42
"""Integer steps in the objective's range."""


@dataclass(frozen=True)
class IntegerAnswer:
    """What CP-SAT said.

    Attributes:
        status: ``optimal``, ``feasible``, ``infeasible`` or ``unknown``.
        choice_G: Feasible choice or None.
        bound: Lower bound on the linear objective (with `products`, on the quadratic one).
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
    products: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    value_tables: tuple[Table, ...] = (),
    workers: int = 2,
) -> IntegerAnswer:
    """Minimise value·x (+ products, + tables) over the compact problem's feasible choices.

    Costs are rounded down to integers, so the bound holds; a choice that then exceeds a budget is solved
    again with costs rounded up.

    Args:
        compact: Groups, budgets and tables; its objective is not used.
        value_P: Objective of every option, float64 [P].
        time_limit_s: Wall time.
        seed: Of CP-SAT.
        hint_G: Start.
        products: (p, q, value) of linearised products x_p x_q, arrays [E].
        value_tables: Joint tables added to the objective; `budget` is ignored.
        workers: CP-SAT threads.
    """
    arguments = (compact, value_P, time_limit_s, seed, hint_G, products, value_tables, workers)
    answer = _solve(*arguments, round_up=False)
    if answer.choice_G is not None and not compact.feasible(answer.choice_G):
        again = _solve(*arguments, round_up=True)
        status = "feasible" if again.choice_G is not None else "unknown"
        answer = IntegerAnswer(status, again.choice_G, answer.bound)
    return answer


def _solve(
    compact: Compact,
    value_P: np.ndarray,
    time_limit_s: float,
    seed: int,
    hint_G: np.ndarray | None,
    products: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    value_tables: tuple[Table, ...],
    workers: int,
    round_up: bool,
) -> IntegerAnswer:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    literals = [model.new_bool_var("") for _ in range(compact.num_options)]
    for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
        model.add_exactly_one(literals[start:stop])
    cells = [_table_literals(model, literals, compact, table) for table in (*compact.tables, *value_tables)]
    for k in range(len(compact.limit_K)):
        own = [(t, c) for t, c in zip(compact.tables, cells, strict=False) if t.budget == k]
        variables = [*literals, *(v for _, (c, _) in own for v in c)]
        cost = np.concatenate([compact.cost_KP[k], *(values for _, (_, values) in own)])
        steps, limit = integer_costs(cost, float(compact.limit_K[k]), compact.num_groups, round_up)
        used = np.flatnonzero(steps)
        model.add(
            cp_model.LinearExpr.weighted_sum([variables[i] for i in used], steps[used].tolist()) <= limit
        )
    variables, values = list(literals), [value_P]
    for cell_variables, cell_values in cells[len(compact.tables) :]:
        variables += cell_variables
        values.append(cell_values)
    if products is not None:
        product_variables = _product_literals(model, literals, *products)
        variables += product_variables
        values.append(products[2])
    value = np.concatenate(values)
    unit = max(float(np.abs(value).sum()), 1e-300) / VALUE_STEPS
    steps = np.round(value / unit).astype(np.int64)
    used = np.flatnonzero(steps)
    model.minimize(cp_model.LinearExpr.weighted_sum([variables[i] for i in used], steps[used].tolist()))
    if hint_G is not None:
        chosen = set(hint_G.tolist())
        for p, literal in enumerate(literals):
            model.add_hint(literal, p in chosen)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(0.01, time_limit_s)
    solver.parameters.random_seed = seed % (1 << 31)
    solver.parameters.num_workers = workers
    solver.parameters.relative_gap_limit = 1e-9
    status = solver.solve(model)
    names = {cp_model.OPTIMAL: "optimal", cp_model.FEASIBLE: "feasible", cp_model.INFEASIBLE: "infeasible"}
    name = names.get(status, "unknown")
    choice_G = None
    if name in ("optimal", "feasible"):
        choice_G = np.flatnonzero([solver.value(v) for v in literals])
    # Every chosen value was rounded by at most half a unit.
    rounding = 0.5 * (compact.num_groups + len(value) - compact.num_options) + 1.0
    bound = (
        -np.inf
        if name == "unknown" and not np.isfinite(solver.best_objective_bound)
        else (solver.best_objective_bound - rounding) * unit
    )
    if name == "infeasible":
        bound = np.inf
    return IntegerAnswer(name, choice_G, float(bound))


def _table_literals(
    model: Any, literals: list[Any], compact: Compact, table: Table
) -> tuple[list[Any], np.ndarray]:
    """One Boolean per finite cell, tied to its options; returns them and their values."""
    index = np.argwhere(np.isfinite(table.table))
    cells = [model.new_bool_var("") for _ in range(len(index))]
    model.add_exactly_one(cells)
    for axis, group in enumerate(table.groups):
        for position in range(table.table.shape[axis]):
            rows = np.flatnonzero(index[:, axis] == position)
            model.add(sum(cells[r] for r in rows) == literals[compact.offset_H[group] + position])
    return cells, table.table[tuple(index.T)]


def _product_literals(
    model: Any, literals: list[Any], p_E: np.ndarray, q_E: np.ndarray, value_E: np.ndarray
) -> list[Any]:
    """Z = x_p x_q for every product, linearised on the side that its sign pulls against."""
    variables = []
    for p, q, value in zip(p_E.tolist(), q_E.tolist(), value_E.tolist(), strict=True):
        product = model.new_bool_var("")
        if value > 0:
            model.add_bool_or(product, ~literals[p], ~literals[q])
        else:
            model.add_implication(product, literals[p])
            model.add_implication(product, literals[q])
        variables.append(product)
    return variables


def integer_costs(cost: np.ndarray, limit: float, num_groups: int, round_up: bool) -> tuple[np.ndarray, int]:
    """Integer costs and limit: exact where the costs have a common unit, else rounded down (or up)."""
    largest = float(np.abs(cost).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(cost), dtype=np.int64), 0 if limit >= 0 else -1
    unit = common_unit(cost)
    if unit is not None:
        slack = 0.0 if round_up else num_groups * 1e-10 * largest
        return np.round(cost / unit).astype(np.int64), int(np.floor((limit + slack) / unit + 1e-9))
    unit = max(largest, abs(limit)) / COST_STEPS
    steps = np.ceil(cost / unit) if round_up else np.floor(cost / unit)
    return steps.astype(np.int64), int(np.floor(limit / unit))


def common_unit(cost: np.ndarray) -> float | None:
    """The largest u of which all costs are integer multiples (to 1e-10 of the largest), or None.

    Example:
        >>> common_unit(np.array([0.0, 6.0, 15.0]))
        3.0
    """
    values = np.unique(np.abs(cost[cost != 0]))
    if len(values) == 0:
        return None
    tolerance = 1e-10 * float(values[-1])
    unit = float(values[0])
    while unit > values[-1] / 2**30:
        rest = np.abs(values - unit * np.round(values / unit))
        rest = rest[rest > tolerance]
        if len(rest) == 0:
            return unit
        unit = float(rest.min())
    return None
