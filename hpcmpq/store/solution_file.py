"""The assignment in `solution.json`."""

import logging
from typing import Any

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.store.json_files import read_edited_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir

log = logging.getLogger(__name__)


def read_solution(run: RunDir) -> dict[str, Any]:
    """`solution.json`. An assignment that somebody changed by hand is taken, with a notice.

    Raises:
        UserError: If nothing is solved yet, or the assignment is none of the plan's.
        DamagedFile: If it is damaged.
    """
    made_by = f"hpcmpq solve {run.path}"
    values, as_written = read_edited_json(run.solution_path, made_by)
    if as_written:
        return values
    space = read_plan(run, with_times=False).space
    formats = {group.name: names for group, names in zip(space.groups, space.formats, strict=True)}
    assignment = values.get("assignment")
    if not isinstance(assignment, dict) or formats.keys() != assignment.keys():
        raise DamagedFile(
            f"{run.solution_path} is damaged or was edited, and its assignment does not name the plan's "
            f"{len(formats)} groups; run `{made_by}` again to write it anew"
        )
    for group, name in assignment.items():
        if name not in formats[group]:
            raise UserError(
                f"{run.solution_path} was edited and gives {group} {name!r}, which is none of its formats: "
                f"{', '.join(formats[group])}"
            )
    log.warning(
        "%s was edited: its assignment is taken as it is; predicted loss and costs are those of the solver's",
        run.solution_path,
    )
    return values
