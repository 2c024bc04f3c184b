"""The times that latencies are priced by, in `time.json`, and whether a solution was priced by them."""

import logging
from collections.abc import Container, Mapping
from typing import Any

from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import content_hash
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir

LATENCY_NAMES = ("latency_s", "prefill_s", "decode_s", "batch_s")
"""Costs that exist once `hpcmpq time` has run, as far as the model has such a phase."""

log = logging.getLogger(__name__)


def on_time(budgets: Container[str]) -> bool:
    """Whether one of budgets, or of other costs, by name, is on a time."""
    return any(name in budgets for name in LATENCY_NAMES)


def read_times(run: RunDir, fingerprint: str, generated_tokens: int) -> dict[str, Any] | None:
    """Values of `time.json`, or None where there is none of the plan.

    Args:
        run: The run directory.
        fingerprint: Of the plan.
        generated_tokens: Of its config, since how long one token takes does not depend on how many there are.

    Raises:
        DamagedFile: If it is damaged.
    """
    if not run.time_path.exists():
        return None
    times: dict[str, Any] = read_json(run.time_path, f"hpcmpq time {run.path}")
    if times.get("fingerprint") != fingerprint:
        return None
    times["generated_tokens"] = generated_tokens
    return times


def times_id(times: Mapping[str, Any] | None) -> str | None:
    """A name of measured times; None without any."""
    return None if times is None else content_hash(times)[:16]


def see_present_times(
    run: RunDir, solution: dict[str, Any], planned: Mapping[str, Any], command: str
) -> None:
    """See that a solution's latencies are of the times that lie there now, or leave them out with a notice.

    Args:
        run: The run directory.
        solution: Values of `solution.json`; of one that does not say by which times it was priced, nothing is known.
        planned: Values of `plan.json`.
        command: What solves again, quoted, for messages.

    Raises:
        PlanMismatch: If a budget of it is on a time.
        DamagedFile: If the times are damaged.
    """
    if "times" not in solution:
        return
    tokens = planned["config"].get("timing", {}).get("generated_tokens", 0)
    times = read_times(run, planned["fingerprint"], tokens)
    if times_id(times) == solution["times"]:
        return
    is_gone = not run.time_path.exists()
    there = "times that are not there any more" if is_gone else f"other times than those in {run.time_path}"
    if within := [name for name in LATENCY_NAMES if name in solution["budgets"]]:
        again = f"{command} again" if times is not None else f"`hpcmpq time {run.path}` and {command}"
        raise PlanMismatch(f"{run.solution_path} keeps {', '.join(within)} by {there}; run {again}")
    log.warning(
        "latencies in %s are by %s and left out; run %s for new ones", run.solution_path, there, command
    )
    for priced in (solution, *solution["uniform"].values()):
        priced["costs"] = {name: cost for name, cost in priced["costs"].items() if name not in LATENCY_NAMES}
    del solution["times"]
