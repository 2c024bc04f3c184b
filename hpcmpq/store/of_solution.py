"""What stages made of a plan and its solution, and whether it is of these: what was there before may lie there still.

What a file of an earlier version does not say is taken to be so.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hpcmpq.errors import PlanMismatch, UserError
from hpcmpq.plan import Plan, content_hash
from hpcmpq.store.json_files import read_json
from hpcmpq.store.measured_losses import is_evaluated_by, kept_codes
from hpcmpq.store.measured_times import times_id
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.sums import check_sum

ASSIGNMENT, VERIFICATION = "assignment.json", "verification.json"
"""In every export: what it holds; and what read it back and how its outputs compare, or why nothing did."""

_HEAD = 2**12
"""Bytes of a page that hold its head's first elements."""


def read_cost(run: RunDir, plan: Plan) -> dict[str, Any] | None:
    """`cost.json`, or None where there is none of this plan.

    Raises:
        DamagedFile: If it is damaged.
    """
    own, command = plan.fingerprint, f"hpcmpq plan CONFIG --run-dir {run.path}"
    return _read_own(run.file("cost.json"), command, lambda cost: cost.get("fingerprint", own) == own)


def read_frontier(run: RunDir, plan: Plan) -> dict[str, Any] | None:
    """`frontier.json`, or None where there is none of this plan and all options and times that it measures by now.

    Raises:
        DamagedFile: If it is damaged.
    """
    command = f"hpcmpq frontier {run.path}"
    return _read_own(run.frontier_path, command, lambda frontier: is_drawn_for(frontier, plan))


def is_drawn_for(frontier: Mapping[str, Any], plan: Plan) -> bool:
    """Whether `frontier.json` is of a plan and all that it measures by now: of a screened run options become more, and
    times that latencies are priced by may have been measured anew.
    """
    own: dict[str, Any] = {"fingerprint": plan.fingerprint, "num_options": plan.space.num_options}
    if "times" in frontier:
        own["times"] = times_id(plan.times)
    return all(frontier.get(name, value) == value for name, value in own.items())


def read_evaluation(run: RunDir, solution: Mapping[str, Any]) -> dict[str, Any] | None:
    """`evaluation.json`, or None where there is none of the solution's weights.

    Raises:
        DamagedFile: If it is damaged.
    """
    command = f"hpcmpq evaluate {run.path}"
    return _read_own(run.evaluation_path, command, lambda found: is_evaluated_by(found, solution))


def _read_own(path: Path, command: str, is_own: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """An artefact, or None where there is none of what `is_own` asks for; `command` makes it."""
    if not path.exists():
        return None
    values: dict[str, Any] = read_json(path, command)
    return values if is_own(values) else None


def proven_facts(solution: Mapping[str, Any]) -> dict[str, Any]:
    """What `proof.json` says of the solution whose bound it explains."""
    return {name: solution[name] for name in ("fingerprint", "budgets", "bound") if name in solution}


def read_proof(run: RunDir, solution: Mapping[str, Any]) -> dict[str, Any]:
    """`proof.json` of a solution.

    Raises:
        UserError: If there is none.
        PlanMismatch: If it is another solution's, as where two processes solve one run.
        DamagedFile: If it is damaged.
    """
    path, command, facts = run.file("proof.json"), f"hpcmpq solve {run.path}", proven_facts(solution)
    values: dict[str, Any] = read_json(path, command)
    if any(values.get(name, facts[name]) != facts[name] for name in facts):
        raise PlanMismatch(f"{path} is of another solution; run `{command} --verbose` with its budgets again")
    return values


def solution_id(solution: Mapping[str, Any]) -> str:
    """A name of a plan's assignment and codes, by which a report says of which solution it is."""
    return content_hash([dict(solution["assignment"]), exported_facts(solution)])[:16]


def is_reported_in(path: Path, solution: Mapping[str, Any]) -> bool:
    """Whether a page is there that is of the solution's weights; nothing but its head is read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = re.search(rb'<meta name="hpcmpq-solution" content="(\w+)">', file.read(_HEAD))
    return found is None or found[1].decode() == solution_id(solution)


def exported_facts(solution: Mapping[str, Any]) -> dict[str, Any]:
    """What `verification.json` of an export of the solution says of it, beside its assignment."""
    known = {"fingerprint": solution["fingerprint"]} if "fingerprint" in solution else {}
    return {**known, "codes": kept_codes(solution)}


def is_exported_to(directory: Path, solution: Mapping[str, Any]) -> bool:
    """Whether a directory is an export of the solution's weights; weights themselves are not looked at."""
    found: list[Mapping[str, Any]] = [{}, {}]
    try:
        for place, path in enumerate((directory / ASSIGNMENT, directory / VERIFICATION)):
            if path.is_file():
                check_sum(path, "")
                found[place] = read_json(path, "hpcmpq export")
    except UserError:
        return False
    (assignment, said), facts = found, exported_facts(solution)
    return assignment == solution["assignment"] and all(said.get(k, facts[k]) == facts[k] for k in facts)
