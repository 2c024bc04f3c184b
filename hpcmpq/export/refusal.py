"""Formats in the solution that an export cannot hold, and what to do about them."""

from collections.abc import Mapping, Sequence

from hpcmpq.errors import UserError
from hpcmpq.plan import Plan


def refuse_formats(
    export: str, plan: Plan, assignment: Mapping[str, str], held: Sequence[str], target: str | None = None
) -> None:
    """Raise `UserError` if the solution uses a format that is not held; it says how to solve without.

    Args:
        export: Name of the export.
        plan: With the formats that could be chosen.
        assignment: {group: format}.
        held: Formats that the export can hold.
        target: A value of ``target`` that plans for such files from the start, if there is one.
    """
    wrong = sorted(set(assignment.values()) - set(held))
    if not wrong:
        return
    searched = {name for names in plan.space.formats for name in names}
    forbidden = ", ".join(sorted(searched - set(held)))
    new_run = f"plan a new run with target: {target}" if target else f"plan a new run with {', '.join(held)}"
    if any(not set(names) & set(held) for names in plan.space.formats):
        raise UserError(f"{export} cannot hold {', '.join(wrong)}; {new_run}")
    raise UserError(
        f'{export} cannot hold {", ".join(wrong)}; set solver.forbidden: {{"*": [{forbidden}]}} in the config and '
        f"`hpcmpq run` it again, which calibrates nothing again, or {new_run}"
    )
