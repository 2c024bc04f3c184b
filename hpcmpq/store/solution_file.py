"""The assignment in `solution.json`."""

import logging
from collections.abc import Mapping
from typing import Any

from hpcmpq.errors import DamagedFile, PlanMismatch, UserError
from hpcmpq.store.json_files import EDITED, read_edited_json, read_json
from hpcmpq.store.measured_losses import kept_codes, without_losses
from hpcmpq.store.measured_times import see_present_times
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.timings import read_timings

log = logging.getLogger(__name__)


def read_solution(run: RunDir) -> dict[str, Any]:
    """`solution.json`. An assignment changed by hand is taken, with a notice, where its `digest` says ``edited``.

    Raises:
        UserError: If nothing is solved yet, or the assignment is none of the plan's.
        PlanMismatch: If it was solved for another plan, options that screening has not chosen any more, or within other
            times than those that are there.
        DamagedFile: If it is not what was written, and does not say that it was edited.
    """
    path = run.solution_path
    try:
        values, as_written = read_edited_json(path, f"hpcmpq solve {run.path}")
    except DamagedFile as error:
        reason = str(error).rpartition("; run `")[0]
        raise DamagedFile(f"{reason}; run {_commands(run)} again to write it anew") from None
    planned: Mapping[str, Any] = {}
    if run.plan_path.exists() and "fingerprint" in values:
        planned = read_json(run.plan_path, f"hpcmpq plan CONFIG --run-dir {run.path}")
        if planned["fingerprint"] != values["fingerprint"]:
            raise PlanMismatch(
                f"{path} was solved for another plan than plan.json; run {_commands(run)} for this one, or use a new "
                "run directory"
            )
    edited = values.pop(EDITED, None) is not None
    if not as_written and not edited:
        raise DamagedFile(
            f'{path} is damaged or was edited (checksum differs); put "digest": "{EDITED}" in its last line if you '
            f"changed its assignment, else run {_commands(run)} again to write it anew"
        )
    if planned:
        see_present_times(run, values, planned, _commands(run))
    if values.verified or not run.plan_path.exists():
        if planned and planned["config"]["sensitivity"].get("screen"):
            _check_measured(run, values["assignment"])
        return values
    _check_assignment(run, values["assignment"], "was edited" if edited else "is damaged or was edited")
    if not edited:
        return values
    log.warning(
        "%s was edited: its assignment is taken as it is; predicted loss and costs are those of the solver's",
        path,
    )
    return without_losses(values, "expected", "measured", "evaluated")


def solution_now(run: RunDir, begun: Mapping[str, Any], command: str, *names: str) -> dict[str, Any]:
    """`solution.json` as it is by now, to which a stage adds what it found of the one that it began with.

    Args:
        run: The run directory.
        begun: What the stage has read at its start.
        command: Of the stage.
        names: Of values that have to be the same, beside the assignment and its codes.

    Raises:
        UserError: If another command has written another solution since.
    """
    now = read_solution(run)
    same = all(now.get(name) == begun.get(name) for name in ("assignment", *names))
    if same and kept_codes(now) == kept_codes(begun):
        return now
    raise UserError(
        f"{run.solution_path} was written by another command while this one ran, and stays as it is; "
        f"run `{command}` again for that solution"
    )


def _check_measured(run: RunDir, assignment: Mapping[str, str]) -> None:
    """Refuse options that a screened run does not measure: what it measures may have been chosen anew since."""
    space = read_plan(run, with_times=False).space
    for group, names in zip(space.groups, space.formats, strict=True):
        if assignment[group.name] not in names:
            raise PlanMismatch(
                f"{run.solution_path} gives {group.name} {assignment[group.name]!r}, and what is measured, chosen anew "
                f"since, is {', '.join(names)}; run `hpcmpq reduce {run.path}` and {_commands(run)}"
            )


def _check_assignment(run: RunDir, assignment: Any, what: str) -> None:
    """Refuse an assignment that is not one of the plan's, of a file without a checksum that could say so."""
    space, path = read_plan(run, with_times=False).space, run.solution_path
    formats = {group.name: names for group, names in zip(space.groups, space.formats, strict=True)}
    if not isinstance(assignment, dict) or formats.keys() != assignment.keys():
        raise DamagedFile(
            f"{path} {what}, and its assignment does not name the plan's {len(formats)} groups; "
            f"run {_commands(run)} again to write it anew"
        )
    for group, name in assignment.items():
        if name not in formats[group]:
            raise UserError(
                f"{path} {what} and gives {group} {name!r}, which is none of its formats: "
                f"{', '.join(formats[group])}"
            )


def _commands(run: RunDir) -> str:
    """The stages that wrote it, in order, as far as the times of stages tell."""
    finished = {stage: str(entry.get("finished", "")) for stage, entry in read_timings(run).items()}
    later = [stage for stage in ("refine", "reround") if finished.get(stage, "") > finished.get("solve", "")]
    return " and ".join(f"`hpcmpq {stage} {run.path}`" for stage in ("solve", *later))
