"""Formats and layers in the solution that an export cannot hold, and what to do about them."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.weights import holder_of
from hpcmpq.plan import Plan
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Member
from hpcmpq.targets import Target, narrowed


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


def refuse_layers(
    holds: str,
    target: Target,
    plan: Plan,
    variants: Variants,
    assignment: Mapping[str, str],
    instead: str = "fake_quantized",
    also_held: Callable[[Member, nn.Module], bool] = lambda member, module: False,
) -> None:
    """Raise `UserError` if a target cannot hold a searched weight in its format, or it is of no linear layer.

    Args:
        holds: What the export holds: the start of the sentence.
        target: For which weights have to be whole groups and blocks.
        plan: With the groups.
        variants: Of the original.
        assignment: {group: format}.
        instead: Exports that hold such a layer.
        also_held: Of a weight and its module, whether it is held although the module is no linear layer.
    """
    for group in plan.space.groups:
        if group.is_cache:
            continue
        narrowed(target, [group], [assignment[group.name]], variants.quantizer)
        for member in group.members:
            module = holder_of(variants.model, member)
            held = type(module) is nn.Linear or also_held(member, module)
            if not held and FORMATS[assignment[group.name]].scaled:
                raise UserError(
                    f"{holds}, {member.parameter} is of a {type(module).__name__}; export {instead}, or plan a new run "
                    "with it in groups.exclude"
                )
