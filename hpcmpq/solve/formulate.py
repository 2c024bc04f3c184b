"""The optimisation problem of a plan: the costs that budgets name, the objective, ties, what is allowed.

Axis letters: P options, G groups.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.plan import Plan
from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.constraints import allowed_options, format_classes, tied_groups
from hpcmpq.solve.costs import (
    active_bytes_cost,
    active_macs_cost,
    average_bits_cost,
    bops_cost,
    kv_bytes_cost,
    macs_cost,
    size_bytes_cost,
    weight_bits_cost,
)
from hpcmpq.solve.costs.latency import latency_costs, mac_time_cost
from hpcmpq.space import KV_BYTES, SearchSpace
from hpcmpq.store.measured_times import LATENCY_NAMES
from hpcmpq.targets import find_target

ACTIVE_NAMES = ("active_bytes", "active_macs")
"""Costs of one token, which plans for tokens have."""


def plan_costs(plan: Plan) -> dict[str, Cost]:
    """Every cost that a budget can name, by name."""
    space, quantizer = plan.space, plan.config.quantizer
    target = find_target(plan.config.target) if plan.config.target else None
    costs = [
        weight_bits_cost(space),
        average_bits_cost(space, quantizer),
        size_bytes_cost(space, quantizer, plan.fixed_bytes, target),
        bops_cost(space),
        macs_cost(space),
        mac_time_cost(space),
        *(latency_costs(space, plan.times) if plan.times else ()),
    ]
    if plan.active_fixed_bytes is not None:
        costs.append(active_bytes_cost(space, quantizer, plan.active_fixed_bytes, target))
        costs.append(active_macs_cost(space, plan.tokens_per_sample))
    if any(group.is_cache for group in space.groups):
        costs.append(kv_bytes_cost(space))
    return {cost.name: cost for cost in costs}


def cost_values(plan: Plan, choice_G: np.ndarray) -> dict[str, float]:
    """Every finite cost of a choice, to 12 digits: beyond them is the rounding of the sum.

    A latency is missing where the choice has no kernel.
    """
    offset_G = plan.space.offset_G
    values = {name: cost.value(choice_G, offset_G) for name, cost in plan_costs(plan).items()}
    return {name: float(f"{value:.12g}") for name, value in values.items() if np.isfinite(value)}


def known_cost(plan: Plan, costs: Mapping[str, Cost], name: str, kind: str = "budget") -> Cost:
    """The cost of that name.

    Raises:
        UserError: If there is none, or its times were never measured.
    """
    if name in costs:
        return costs[name]
    if name in LATENCY_NAMES and plan.times is None:
        raise UserError(
            f"{kind} {name} needs measured times and none were measured for this plan; run `hpcmpq time RUN` first"
        )
    if name in ACTIVE_NAMES:
        raise UserError(
            f"{kind} {name} is per token and this plan counts none: its samples are no tokens, or it is older than "
            "this cost; `hpcmpq plan` again counts them"
        )
    if name == KV_BYTES:
        raise UserError(
            f"{kind} {name} needs caches to search; set groups.kv_cache, such as [fp8_e4m3, bf16]"
        )
    raise UserError(f"unknown {kind} {name!r}; known: {', '.join(costs)}")


def make_problem(
    plan: Plan, model: QuadraticModel, budgets: Mapping[str, float], settings: SolverConfig
) -> Problem:
    """The optimisation problem of a plan, its quadratic model as `shrunk` gives it, budgets and constraints."""
    space = plan.space
    names = tuple(space.groups[option.group].name for option in space.options)
    if model.option_group != names or model.option_format != tuple(o.format for o in space.options):
        raise UserError("quadratic.h5 belongs to another plan than plan.json; run `hpcmpq reduce` again")
    quad_PP = np.broadcast_to(0.0, model.quad_PP.shape) if settings.drop_cross_terms else model.quad_PP
    problem = constrained(plan, model.linear_P, quad_PP, budgets, settings)
    return replace(problem, constant=model.loss0)


def additive(plan: Plan, cost_P: np.ndarray, budgets: Mapping[str, float], settings: SolverConfig) -> Problem:
    """`constrained` where options cost what they cost alone: no P x P array is made."""
    return constrained(plan, cost_P, np.broadcast_to(0.0, (len(cost_P), len(cost_P))), budgets, settings)


def constrained(
    plan: Plan,
    linear_P: np.ndarray,
    quad_PP: np.ndarray,
    budgets: Mapping[str, float],
    settings: SolverConfig,
) -> Problem:
    """An objective within a plan's budgets, ties and allowed options.

    Raises:
        UserError: If a budget or format is unknown, a limit is not finite, or a pattern matches no group.
    """
    space, costs = plan.space, plan_costs(plan)
    for name, limit in budgets.items():
        known_cost(plan, costs, name)
        if not np.isfinite(limit):
            raise UserError(f"budget {name} must be a finite number, got {limit}")
    return Problem(
        linear_P=linear_P,
        quad_PP=quad_PP,
        group_P=space.group_P,
        budgets=tuple(Budget(costs[name], float(limit)) for name, limit in budgets.items()),
        allowed_P=allowed_options(space, settings),
        ties=tied_groups(space, settings),
        tie_class_P=format_classes(space),
        group_names=tuple(group.name for group in space.groups),
    )


def uniform_choices(space: SearchSpace) -> dict[str, np.ndarray]:
    """{format: option index per group} of every format that all groups can take, fewest bits first; caches are wide."""
    lists = [names for group, names in zip(space.groups, space.formats, strict=True) if not group.is_cache]
    shared = [name for name in lists[0] if all(name in names for names in lists)]
    shared.sort(key=lambda name: FORMATS[name].num_bits)
    return {name: space.choice(space.uniform(name)) for name in shared}


def uniform_hint(space: SearchSpace, problem: Problem) -> np.ndarray | None:
    """The best feasible uniform assignment, so that no solution is predicted worse than uniform."""
    feasible = [choice_G for choice_G in uniform_choices(space).values() if problem.is_feasible(choice_G)]
    return min(feasible, key=problem.objective, default=None)
