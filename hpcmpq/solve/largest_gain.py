"""The largest gain within a loss: what `hpcmpq solve --maximize` writes (arXiv 2505.13060).

    maximise   gain(x) = cost of the original − cost(x)      time: measured; MACs, memory: counted
    subject to loss MSE(x) ≤ τ · E[loss²]                    and every budget

An integer program with one Boolean per measured combination of a sub-graph's formats. Where the sensitivity has
cross terms, the loss is no sum; then the dual, the least loss within a limit on the cost, is solved for limits that
are halved between one that is reached and one that is not.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcmpq.errors import Infeasible, UserError
from hpcmpq.plan import Plan
from hpcmpq.problem import Budget, Cost, Problem, Solution, Termination, relative_gap
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.costs.latency import original_latency_s
from hpcmpq.solve.formulate import known_cost, make_problem, plan_costs
from hpcmpq.solve.outcome import describe, none_found
from hpcmpq.solve.screened import say_unmeasured
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.answer import PROVEN_GAP
from hpcmpq.solvers.least_cost import least_cost
from hpcmpq.solvers.reachable import open_budget
from hpcmpq.solvers.valid_bound import cost_size, lowered, rounding
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir

_log = logging.getLogger(__name__)

GAINS = {"time_gain": "latency_s", "mac_gain": "mac_time", "memory_gain": "size_bytes"}
"""Gain: the cost that it saves."""

ORIGINAL_BITS = {"float64": 64, "float32": 32, "bfloat16": 16}
"""Of plans that do not say how the original is stored."""

HALVINGS = 12
"""Limits that are tried where the loss has cross terms, and as many again just below the best cost."""

LEAST_STEP_S = 0.5
"""Solver seconds of one limit at least."""


@dataclass(frozen=True)
class LossLimit:
    """An upper limit on the predicted loss.

    Attributes:
        value: In the unit of the quadratic model's loss increase.
        name: What the limit is on, for messages and artefacts.
        given: As given.
    """

    value: float
    name: str
    given: float


def maximize(
    run: RunDir, gain: str, limit: LossLimit, budgets: Mapping[str, float], settings: SolverConfig
) -> dict[str, Any]:
    """Solve for the largest gain and write `solution.json`; returns its values, with `maximized` beside the usual.

    Raises:
        UserError: If the gain is unknown or its times were never measured.
        Infeasible: If no assignment keeps the loss and the budgets.
    """
    plan = read_plan(run)
    model = shrunk(read_quadratic(run.quadratic_path, plan), settings.shrink)
    say_unmeasured(plan)
    if settings.robust_k > 0:
        _log.warning("solver.robust_k does not act on --maximize: the limit is on the mean predicted loss")
    cost, original = gained_cost(plan, gain)
    problem = make_problem(plan, model, budgets, settings)
    solution = largest_gain(problem, cost, limit, settings)
    assert solution.choice_G is not None and solution.objective is not None
    saved = original - solution.objective
    # What was reached becomes a budget: later stages look for less loss within it.
    reached = {**budgets, cost.name: min(solution.objective, budgets.get(cost.name, np.inf))}
    problem = make_problem(plan, model, reached, settings)
    loss_solution = replace(solution, objective=problem.objective(solution.choice_G), bound=None)
    values = describe(plan, model, problem, loss_solution, reached, settings)
    values["maximized"] = {
        "gain": gain,
        "cost": cost.name,
        "unit": cost.unit,
        "original": original,
        "reached": solution.objective,
        "saved": saved,
        "saved_share": saved / original,
        "bound": None if solution.bound is None else original - solution.bound,
        "limit_on": limit.name,
        "limit": limit.given,
        "loss_limit": limit.value,
    }
    run.file("proof.json").unlink(missing_ok=True)  # of the least loss, which this is not
    write_artefact(run.solution_path, values)
    return values


def loss_limit(model: QuadraticModel, max_loss_mse: float | None, max_loss: float | None) -> LossLimit:
    """The limit in the model's unit, from exactly one of a share of the loss's mean square and a loss increase.

    Raises:
        UserError: If both or none is given, it is negative, or the sensitivity is of another kind.
    """
    given = max_loss if max_loss_mse is None else max_loss_mse
    if given is None or (max_loss_mse is not None and max_loss is not None):
        raise UserError("--maximize needs one of --max-loss-mse (first_order) and --max-loss (all others)")
    if not (np.isfinite(given) and given >= 0):
        raise UserError(f"the limit on the loss must be a number not below 0, got {given}")
    mean_square = model.task_loss_mean_square
    if max_loss_mse is not None:
        if mean_square is None:
            raise UserError(
                f"--max-loss-mse is a share of the loss's mean square, which {model.method} does not measure; "
                "use --max-loss with the largest predicted loss increase, or sensitivity first_order"
            )
        return LossLimit(max_loss_mse * mean_square, "loss_mse", max_loss_mse)
    if mean_square is not None:
        raise UserError(f"{model.method} measures a loss mean-squared-error; use --max-loss-mse")
    return LossLimit(given, "loss_increase", given)


def gained_cost(plan: Plan, gain: str) -> tuple[Cost, float]:
    """The cost that a gain saves, and its value for the original model in the dtype that its `config.json` names.

    Raises:
        UserError: If the gain is unknown, or its times were never measured.
    """
    if gain not in GAINS:
        raise UserError(f"unknown gain {gain!r} in --maximize; known: {', '.join(GAINS)}")
    bits = plan.original_bits or ORIGINAL_BITS[plan.config.model.dtype]
    groups = plan.space.groups
    cost = known_cost(plan, plan_costs(plan), GAINS[gain], f"{gain} saves the cost")
    if gain == "mac_gain":
        return cost, sum(group.macs for group in groups) * bits / 16.0
    if gain == "memory_gain":
        return cost, plan.fixed_bytes + sum(group.numel for group in groups) * bits / 8.0
    assert plan.times is not None
    return cost, original_latency_s(plan.times)


def largest_gain(problem: Problem, cost: Cost, limit: LossLimit, settings: SolverConfig) -> Solution:
    """The choice of least cost within the loss limit; of several, the one of least loss.

    Returns:
        A solution whose objective and bound are values of `cost`.

    Raises:
        Infeasible: If no assignment keeps the loss and the budgets, or none was found in time.
    """
    if problem.quad_PP.any():
        return _by_halving(problem, cost, limit, settings)
    # Budgets are kept to a tolerance of about 1e-9 in their own unit, which a loss can be far below.
    unit = float(np.abs(problem.linear_P).max()) or 1.0
    loss = Budget(Cost(limit.name, "the largest option's loss", problem.linear_P / unit), limit.value / unit)
    limited = replace(problem, budgets=(*problem.budgets, loss))
    deadline = time.perf_counter() + settings.time_limit_s
    found = least_cost(limited, cost, time_limit_s=settings.time_limit_s, seed=settings.seed)
    if found.choice_G is None:
        raise none_found(found, "the loss limit and the budgets", settings.time_limit_s)
    assert found.objective is not None
    left = replace(settings, time_limit_s=max(LEAST_STEP_S, deadline - time.perf_counter()))
    least_loss = _least_loss(limited, cost, found.objective, found.choice_G, left)
    if least_loss is None or least_loss.choice_G is None:
        return found
    if problem.objective(least_loss.choice_G) < problem.objective(found.choice_G):
        value = cost.value(least_loss.choice_G, problem.offset_G)
        return replace(found, choice_G=least_loss.choice_G, objective=value)
    return found


def _least_loss(
    problem: Problem, cost: Cost, value: float, hint_G: np.ndarray | None, settings: SolverConfig
) -> Solution | None:
    """The least loss within a limit on the cost, or None where there is no assignment."""
    limited = replace(problem, budgets=(*problem.budgets, Budget(cost, value)))
    solution = make_solver(settings.name).solve(
        limited, time_limit_s=settings.time_limit_s, seed=settings.seed, hint_G=hint_G
    )
    return None if solution.termination is Termination.INFEASIBLE else solution


def _by_halving(problem: Problem, cost: Cost, limit: LossLimit, settings: SolverConfig) -> Solution:
    """Limits on the cost between the least there is and the first whose least loss keeps the limit.

    Once they are close, limits just below the best cost: none that keeps the loss there proves the best.
    """
    started = time.perf_counter()
    deadline = started + settings.time_limit_s
    step = replace(settings, time_limit_s=max(LEAST_STEP_S, settings.time_limit_s / HALVINGS))

    def keeps(choice_G: np.ndarray) -> bool:
        increase = problem.objective(choice_G) - problem.constant
        return increase <= limit.value + 1e-9 * abs(limit.value) + rounding(problem, choice_G)

    floor = least_cost(problem, cost, time_limit_s=step.time_limit_s, seed=settings.seed)
    if floor.choice_G is None or floor.objective is None:
        raise none_found(floor, "the budgets", step.time_limit_s)
    roof = _least_loss(problem, cost, open_budget(cost).limit, None, step)
    if roof is None or roof.choice_G is None or not keeps(roof.choice_G):
        reached = None if roof is None or roof.objective is None else roof.objective - problem.constant
        raise Infeasible(
            f"no assignment was found with a predicted loss increase of at most {limit.value:.6g}"
            + ("" if reached is None else f"; the smallest found is {reached:.6g}")
        )
    best_G, low, bound = roof.choice_G, floor.objective, floor.bound
    high = cost.value(best_G, problem.offset_G)
    if keeps(floor.choice_G):
        least = _least_loss(problem, cost, floor.objective, floor.choice_G, step)
        best_G = floor.choice_G if least is None or least.choice_G is None else least.choice_G
        high = cost.value(best_G, problem.offset_G)
    most = problem.constant + limit.value + 1e-9 * abs(limit.value)
    for halving in range(2 * HALVINGS):
        closed = bound is not None and relative_gap(high, bound) <= PROVEN_GAP
        if closed or time.perf_counter() > deadline:
            break
        close = halving >= HALVINGS or relative_gap(high, low) <= 1e-4
        middle = high - 0.9 * PROVEN_GAP * abs(high) if close else 0.5 * (low + high)
        found = _least_loss(problem, cost, middle, best_G, step)
        if found is not None and found.choice_G is not None and keeps(found.choice_G):
            best_G, high = found.choice_G, cost.value(found.choice_G, problem.offset_G)
            low = min(low, high)
            continue
        proven = found is None or (found.bound is not None and found.bound > most)
        if proven:
            bound = max(bound, middle) if bound is not None else middle
        elif close:
            break
        low = middle
    optimal = bound is not None and relative_gap(high, bound) <= PROVEN_GAP
    late = time.perf_counter() > deadline
    termination = Termination.TIME_LIMIT if late else Termination.FEASIBLE
    return Solution(
        Termination.OPTIMAL if optimal else termination,
        best_G,
        high,
        None if bound is None else lowered(bound, high, cost_size(cost, best_G, problem.offset_G)),
        {},
        time.perf_counter() - started,
    )
