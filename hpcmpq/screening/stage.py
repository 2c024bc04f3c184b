"""Calibration of a run that is screened: a first pass, then rounds of measuring what may be chosen.

After each round the solver looks at what is measured. What was not measured and could lower its solution is measured in
the next, until nothing is wanted. Processes that share the run directory take the choice of the first that gets there.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.stage import calibrate_batches
from hpcmpq.errors import DamagedFile
from hpcmpq.executors import Executor
from hpcmpq.executors.batches import Batches, run_batches
from hpcmpq.plan import Plan, UnitOutcome, content_hash
from hpcmpq.screening.choice import first_options, more_options, share_of_blocks
from hpcmpq.screening.first_pass import first_pass
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.json_files import read_json
from hpcmpq.store.measured_times import on_time
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.screening_rounds import keep_round, paths_of_rounds, read_rounds, round_path
from hpcmpq.store.shards import pending

log = logging.getLogger(__name__)

MAX_ROUNDS = 4
"""Of one call; each starts workers anew."""


def calibrate_screened(
    run: RunDir,
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> None:
    """Measure what may be chosen, on an executor; see `screened_batches`, also for what else it takes."""
    run_batches(screened_batches(run, on_outcome, part, at_most), executor)


def screened_batches(
    run: RunDir,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int] = (0, 1),
    at_most: int | None = None,
) -> Batches[None]:
    """What may be chosen within the config's budgets, and within those that were solved for last.

    Args:
        run: A planned run directory.
        on_outcome: See `hpcmpq.units.missing_batches`.
        part: Likewise.
        at_most: Likewise, of the first pass and of each round; what is left waits for the same call again.

    Raises:
        IncompleteCalibration: If a unit failed for good; all others are on disk.
    """
    whole = read_plan(run, screened=False)
    remove_damaged(run, whole)
    if not read_rounds(run, whole):
        first_P = yield from first_pass(run, on_outcome, part, at_most)
        if first_P is None:
            return
        options = first_options(whole, first_P, whole.config.budgets, whole.config.solver)
        keep_round(run, whole, 1, {"options": options, "cost": first_P.tolist()})
    for _ in range(MAX_ROUNDS):
        yield from calibrate_batches(run, on_outcome, part, at_most)
        plan = read_plan(run)
        if pending(plan, run)[0] or not choose_more(run, plan):
            break
    else:
        log.warning(
            "options are still wanted after %d rounds; `%s` again measures them", MAX_ROUNDS, run.command
        )
    plan = read_plan(run)
    log.info(
        "screening: %d of %d options are measured in %d rounds, at about %.0f %% of the cost of all",
        plan.space.num_options,
        whole.space.num_options,
        len(plan.rounds),
        100 * share_of_blocks(whole.space, plan.space),
    )


def remove_damaged(run: RunDir, plan: Plan) -> None:
    """Remove all rounds if one is damaged or of another plan: they are chosen again, and what they measured stays."""
    there = paths_of_rounds(run)
    try:
        if not there or read_rounds(run, plan):
            return
        log.warning("%s belongs to another plan; choosing anew what is measured", round_path(run, 1))
    except DamagedFile as error:
        log.warning("%s; choosing anew what is measured", str(error).rpartition("; run `")[0])
    for path in there:
        path.unlink(missing_ok=True)


ASKING = 2
"""Counts ways to choose what more to measure: where an earlier one wanted nothing, the present one is asked again."""


def choose_more(run: RunDir, plan: Plan) -> bool:
    """Write the next round, if there has to be one; whether it measures anything."""
    rounds, solution = read_rounds(run, plan), _last_solution(run, plan)
    first_P = np.array(rounds[0]["cost"])
    asked = [(plan.config.budgets, plan.config.solver)]
    if solution:
        if not on_time(solution["budgets"]):
            asked.append((solution["budgets"], settings_of(plan, **solution["solver"])))
        if wanted := _unmeasured(plan, solution["screening"]["wanted"]):
            return _keep_next(run, plan, rounds, {"options": wanted, "asked": "the last solution"})
    for budgets, settings in asked:
        name = content_hash([ASKING, dict(budgets), asdict(settings)])
        if any(values["asked"] == name and not values["options"] for values in rounds[1:]):
            continue  # nothing was wanted
        model = shrunk(reduce(run).model, settings.shrink)
        options = more_options(plan, first_P, model, budgets, settings)
        if _keep_next(run, plan, rounds, {"options": options, "asked": name}):
            return True
        rounds = read_rounds(run, plan)
    return False


def _keep_next(run: RunDir, plan: Plan, rounds: list[dict[str, Any]], values: dict[str, Any]) -> bool:
    """Write a round, or take what another process wrote; whether it measures anything."""
    keep_round(run, plan, len(rounds) + 1, values)
    return bool(read_rounds(run, plan)[len(rounds)]["options"])


def _last_solution(run: RunDir, plan: Plan) -> dict[str, Any]:
    """Of this run when it was screened already; empty if there is none, or it was edited or is another plan's."""
    if not run.solution_path.exists():
        return {}
    try:
        solution: dict[str, Any] = read_json(run.solution_path, f"hpcmpq solve {run.path}")
    except DamagedFile:
        return {}
    is_own = solution.get("fingerprint", plan.fingerprint) == plan.fingerprint
    return solution if is_own and "screening" in solution else {}


def _unmeasured(plan: Plan, wanted: Mapping[str, list[str]]) -> list[int]:
    """Indices among all options of those named that are not measured."""
    space = plan.whole.space
    names = {(group, name) for group, formats in wanted.items() for name in formats}
    names -= {(plan.space.groups[o.group].name, o.format) for o in plan.space.options}
    return [o.index for o in space.options if (space.groups[o.group].name, o.format) in names]
