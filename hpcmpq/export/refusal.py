"""Formats and layers in the solution that an export cannot hold, and what to do about them."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.export.holdable import ExportSubject
from hpcmpq.formats import FORMATS
from hpcmpq.models.weights import holder_of
from hpcmpq.plan import Plan
from hpcmpq.space import Group, Member
from hpcmpq.targets import Target, narrowed

Held = Callable[[ExportSubject, Group, Sequence[str]], tuple[str, ...]]
"""`held` of an export: (subject, group, formats) to those that it can hold of the group; raises `UserError` if none."""


def refuse_formats(
    export: str, plan: Plan, assignment: Mapping[str, str], held: Sequence[str], target: str | None = None
) -> None:
    """Raise `UserError` if a weight of the solution has a format that is not held; it says how to solve without.

    Args:
        export: Name of the export.
        plan: With the formats that could be chosen.
        assignment: {group: format}.
        held: Formats that the export can hold.
        target: A value of ``target`` that plans for such files from the start, if there is one.
    """
    of_weights = [
        (group, names)
        for group, names in zip(plan.space.groups, plan.space.formats, strict=True)
        if not group.is_cache
    ]
    wrong = sorted({assignment[group.name] for group, _ in of_weights} - set(held))
    if not wrong:
        return
    searched = {name for _, names in of_weights for name in names}
    forbidden = ", ".join(sorted(searched - set(held)))
    new_run = f"plan a new run with target: {target}" if target else f"plan a new run with {', '.join(held)}"
    if any(not set(names) & set(held) for _, names in of_weights):
        raise UserError(f"{export} cannot hold {', '.join(wrong)}; {new_run}")
    raise UserError(
        f'{export} cannot hold {", ".join(wrong)}; set solver.forbidden: {{"*": [{forbidden}]}} in the config and '
        f"`hpcmpq run` it again, which calibrates nothing again, or {new_run}"
    )


def held_by_target(
    holds: str,
    target: Target,
    subject: ExportSubject,
    group: Group,
    names: Sequence[str],
    instead: str = "fake_quantized",
    also_held: Callable[[Member, nn.Module], bool] = lambda member, module: False,
) -> tuple[str, ...]:
    """Those of a group's formats that a target's file can hold: of weights that are of no linear layer, plain ones.

    Args:
        holds: What the export holds: the start of the sentence.
        target: For which weights have to be whole groups and blocks.
        subject: What is exported.
        group: Of weights.
        names: Formats.
        instead: Exports that hold such a layer.
        also_held: Of a weight and its module, whether it is held although the module is no linear layer.

    Raises:
        UserError: If none is left.
    """
    [kept] = narrowed(target, [group], names, subject.config.quantizer)
    for member in group.members:
        module = holder_of(subject.model, member)
        if type(module) is nn.Linear or also_held(member, module):
            continue
        kept = tuple(name for name in kept if not FORMATS[name].scaled)
        if not kept:
            raise UserError(
                f"{holds}, {member.parameter} is of a {type(module).__name__}; export {instead}, or plan a new run "
                "with it in groups.exclude"
            )
    return kept


def refuse_choices(held: Held, subject: ExportSubject, assignment: Mapping[str, str]) -> None:
    """Raise `UserError` if an export cannot hold a weight in the format that a solution gives it."""
    for group in subject.weights:
        held(subject, group, [assignment[group.name]])
