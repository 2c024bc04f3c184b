"""What can only fail when solving is refused when planning, before days of measurement."""

import numpy as np

from hpcmpq.errors import Infeasible
from hpcmpq.plan import Plan
from hpcmpq.solve.formulate import constrained
from hpcmpq.solvers import make_solver
from hpcmpq.solvers.answer import explain
from hpcmpq.solvers.compact.ties import merge_ties
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.store.measured_times import LATENCY_NAMES

TIME_LIMIT_S = 5.0
"""Wall seconds in which several budgets must be shown to exclude one another; undecided ones are left to solving."""


def check_solvable(plan: Plan) -> None:
    """Check the solver, the constraints and the budgets that a config names, before anything is measured.

    Budgets on times are left out as long as `hpcmpq time` has measured none.

    Raises:
        UserError: If the solver, a budget or a format is unknown, or a pattern matches no group.
        Infeasible: If no assignment meets the budgets.
    """
    settings = plan.config.solver
    make_solver(settings.name)
    budgets = {
        name: limit
        for name, limit in plan.config.budgets.items()
        if plan.times is not None or name not in LATENCY_NAMES
    }
    num_options = plan.space.num_options
    zero_PP = np.broadcast_to(0.0, (num_options, num_options))
    problem = constrained(plan, np.zeros(num_options), zero_PP, budgets, settings)
    compact = merge_ties(problem)
    if isinstance(compact, str):
        raise Infeasible(f"no assignment meets the budgets: {compact}")
    if solve_linear(compact, compact.linear_P, time_limit_s=TIME_LIMIT_S, seed=0).status == "infeasible":
        raise Infeasible(f"no assignment meets the budgets: {explain(problem, TIME_LIMIT_S)}")
