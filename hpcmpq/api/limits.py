"""The frontier stage with a range of limits where none is given, and the coarse one that a whole run draws."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hpcmpq.api.stages import Counted, stage, unseen
from hpcmpq.errors import DamagedFile, Infeasible, UserError
from hpcmpq.settings import SolverConfig, from_values
from hpcmpq.store.of_solution import read_frontier
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

NUM_STEPS = 24
"""Steps between the smallest and the largest uniform format, if not given."""

MAX_STEPS = 10_000
"""More are a slip of the finger."""

POINT_S = 2.0
"""Solver seconds of one point."""

COARSE_STEPS, COARSE_TIME_S = 12, 0.5
"""The same, and solver seconds of a point, for the curve that a whole run draws."""


def frontier(
    run: RunDir,
    cost: str | None = None,
    start: float | None = None,
    stop: float | None = None,
    step: float | None = None,
    budgets: Mapping[str, float] | None = None,
    solver: str | None = None,
    time_limit_s: float = POINT_S,
    on_point: Counted = unseen,
) -> dict[str, Any]:
    """See `hpcmpq.solve.frontier.frontier`; what is None is chosen.

    Args:
        run: A reduced run directory.
        cost: The cost that varies, by default that of the config's first budget.
        start: Smallest limit, by default that of the smallest uniform format.
        stop: Largest limit, by default that of the largest uniform format.
        step: Distance of limits, by default a `NUM_STEPS`th of the range.
        budgets: On other costs, at every point.
        solver: A name in `hpcmpq.solvers.SOLVERS`, by default the plan's.
        time_limit_s: Solver seconds of one point.
        on_point: Called with the number of points done and of all points.

    Raises:
        UserError: If there is no range, or the cost is unknown or has a budget too.
        Infeasible: If not even the largest limit can be met.
    """
    import numpy as np

    from hpcmpq.solve.frontier import frontier as frontier_run
    from hpcmpq.solve.frontier import uniform_range
    from hpcmpq.solve.settings import settings_of

    plan, others = read_plan(run), dict(budgets or {})
    cost = cost or next(iter(plan.config.budgets), "weight_bits")
    found = uniform_range(plan, cost)
    if found is None and (start is None or stop is None):
        raise UserError(
            f"no two uniform formats differ in {cost}, so the range is not known; give --from and --to"
        )
    start = found[0] if found and start is None else start
    stop = found[1] if found and stop is None else stop
    assert start is not None and stop is not None
    step = (stop - start) / NUM_STEPS if step is None else step
    if not (0 < step < np.inf and -np.inf < start <= stop < np.inf):
        raise UserError(
            f"--from {start:g} --to {stop:g} --step {step:g} is not a range; use --from below --to"
        )
    if (stop - start) / step > MAX_STEPS:
        raise UserError(f"--step {step:g} makes more than {MAX_STEPS:,} points; take a larger one")
    limits = start + step * np.arange(int((stop - start) / step + 1e-9) + 1)
    if cost in others:
        raise UserError(f"{cost} is the cost that varies; limit it with --from and --to, not with --budget")
    with stage(run, "frontier"):
        settings = settings_of(plan, name=solver, time_limit_s=time_limit_s)
        return frontier_run(run, cost, limits, others, settings, on_point)


def coarse_frontier(run: RunDir, on_point: Counted = unseen) -> str | None:
    """A few points over the whole range for the report, unless there is one of this plan and these solver settings.

    Returns:
        Why there is none, or None.
    """
    from hpcmpq.solve.frontier import uniform_range

    plan = read_plan(run)
    with suppress(DamagedFile):  # solved anew
        known = read_frontier(run, plan) or {}
        if "fingerprint" in known and _planned_solver(known) == plan.config.solver:
            return None
    cost = next(iter(plan.config.budgets), "weight_bits")
    found = uniform_range(plan, cost)
    if found is None and plan.whole_space is not None:
        return f"screening left fewer than two uniform formats; `hpcmpq frontier {run.path} --from A --to B` draws one"
    if found is None:
        return f"no two uniform formats differ in {cost}"
    step = (found[1] - found[0]) / COARSE_STEPS
    try:
        frontier(run, cost, *found, step, time_limit_s=COARSE_TIME_S, on_point=on_point)
    except Infeasible as error:
        return str(error)
    return None


def _planned_solver(frontier: dict[str, Any]) -> SolverConfig | None:
    """Settings of the plan that it was drawn for; None of a version with others, or before they were kept."""
    with suppress(KeyError, ValueError):
        return from_values(SolverConfig, frontier.get("planned_solver") or frontier["solver"])
    return None
