"""The groups of a model that an engine is to run: layers that it can hold, fused as it fuses them."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.groups import find_groups
from hpcmpq.models.layer_kinds import are_experts
from hpcmpq.models.weights import holder_of
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import Group, Member
from hpcmpq.targets import Target

_log = logging.getLogger(__name__)

_EXPERT = re.compile(r"(?:^|\.)experts\.\d+\.(\w+)$")
"""A layer of one expert among a list of them, by its own name."""


def deployable_groups(
    model: nn.Module, config: GroupsConfig, sample_inputs: dict[str, Tensor], target: Target | None
) -> tuple[Group, ...]:
    """`find_groups` with the target's fused layers tied; without a target the same as `find_groups`.

    Raises:
        UserError: Also if a searched weight is of a layer that the target's file does not hold, if a tie rule of
            the config splits layers that the engine fuses, or if only some of them are searched.
    """
    groups = find_groups(model, config, sample_inputs)
    if target is None:
        return groups
    members = [member for group in groups for member in group.members]
    searched = [member.parameter.removesuffix(".weight") for member in members]
    for member, name in zip(members, searched, strict=True):
        module = holder_of(model, member)
        held = type(module) is nn.Linear or (target.holds_embeddings and type(module) is nn.Embedding)
        if not held and not (target.holds_experts and saved_one_by_one(member, module)):
            layers = "linear layers and embeddings" if target.holds_embeddings else "linear layers"
            raise UserError(
                f"target {target.name} holds {layers} only, {name} is a {type(module).__name__}; add it to "
                "groups.exclude"
            )
    fused = fused_layers(model, target)
    _check_whole(model, searched, target, fused)
    rules = _missing_rules(searched, config.tie, target, fused)
    if target.fuses_experts:
        rules += _rules_of_experts(model, searched, config.tie, target)
    if not rules:
        return groups
    return find_groups(model, dataclasses.replace(config, tie=(*config.tie, *rules)), sample_inputs)


def fused_layers(model: nn.Module, target: Target) -> tuple[tuple[str, ...], ...]:
    """Tie rules: last names of layers that an engine runs as one matrix in this model; says so if it has to guess."""
    names = getattr(getattr(model, "config", None), "architectures", None) or [""]
    fused = target.fused(names[0])
    if fused is not None:
        return fused
    _log.info(
        "which layers of %s %s runs as one matrix is not known: those that it fuses in most models share a format",
        names[0] or "this model", target.name,
    )  # fmt: skip
    return target.fused_otherwise


def _check_whole(
    model: nn.Module, searched: Sequence[str], target: Target, fused: Sequence[tuple[str, ...]]
) -> None:
    """Refuse to search some of the layers that an engine runs as one matrix, and not the others."""
    there, known = set(searched), {name for name, _ in model.named_modules()}
    for name in searched:
        parent, _, last = name.rpartition(".")
        for rule in fused:
            siblings = [f"{parent}.{other}" if parent else other for other in rule] if last in rule else []
            left_out = [sibling for sibling in siblings if sibling in known and sibling not in there]
            if left_out:
                raise UserError(
                    f"target {target.name} runs {name} and {left_out[0]} as one matrix, and groups searches "
                    "only the first; include or exclude both"
                )
    for name, own in _fused_experts(model).items() if target.fuses_experts else ():
        if left_out := [each for each in own if each not in there] if there.intersection(own) else []:
            raise UserError(
                f"target {target.name} runs all projections of {name} in one format, and groups does not search "
                f"{left_out[0]}; include or exclude all"
            )
    experts: dict[str, list[str]] = {}
    for name in known if target.fuses_experts else ():
        if found := _EXPERT.search(name):
            experts.setdefault(f"{name[: found.start()]} {found[1]}", []).append(name)
    for names in experts.values():
        if left_out := sorted(set(names) - there) if there.intersection(names) else []:
            raise UserError(
                f"target {target.name} runs all experts of a layer in one format, and groups does not search "
                f"{left_out[0]}; exclude all experts of the layer, or, if the first calibration sample chooses that "
                "expert nowhere, make samples longer"
            )


def _missing_rules(
    searched: Sequence[str],
    ties: Sequence[Sequence[str]],
    target: Target,
    fused: Sequence[tuple[str, ...]],
) -> list[tuple[str, ...]]:
    of_experts = [found[1] for name in searched if target.fuses_experts and (found := _EXPERT.search(name))]
    rules = [tuple(f"experts.*.{last}" for last in dict.fromkeys(of_experts))] if of_experts else []
    lasts = {
        name.rpartition(".")[2] for name in searched if not (target.fuses_experts and _EXPERT.search(name))
    }
    present = [tuple(last for last in rule if last in lasts) for rule in fused]
    return rules + _untied(present, ties, target, "as one matrix")


def _rules_of_experts(
    model: nn.Module, searched: Sequence[str], ties: Sequence[Sequence[str]], target: Target
) -> list[tuple[str, ...]]:
    """Rules that tie all projections of experts that are kept in one tensor each."""
    wanted = {
        tuple(".".join(name.split(".")[-2:]) for name in own)
        for own in _fused_experts(model).values()
        if set(own) <= set(searched)
    }
    return _untied(sorted(wanted), ties, target, "in one format")


def _untied(
    wanted: Sequence[tuple[str, ...]], ties: Sequence[Sequence[str]], target: Target, how: str
) -> list[tuple[str, ...]]:
    """The wanted rules of several parts that no rule of the config covers; `how` a target runs such parts.

    Raises:
        UserError: If a rule of the config splits one.
    """
    rules = []
    for rule in wanted:
        covering = [{part for part in rule if _named(part, own)} for own in ties]
        covering = [covered for covered in covering if covered]
        if covering and covering != [set(rule)]:
            raise UserError(
                f"groups.tie splits {', '.join(rule)}, which target {target.name} runs {how}; put them in "
                "one rule or remove it"
            )
        if len(rule) > 1 and not covering:
            rules.append(rule)
    return rules


def _fused_experts(model: nn.Module) -> dict[str, list[str]]:
    """{module: its weights of all experts}."""
    return {
        name: [
            f"{name}.{own}"
            for own, weight in module._parameters.items()
            if weight is not None and weight.ndim == 3
        ]
        for name, module in model.named_modules()
        if are_experts(module)
    }


def saved_one_by_one(member: Member, module: nn.Module) -> bool:
    """Whether a weight is that of all experts of a layer, which packed checkpoints hold in a matrix of each."""
    return are_experts(module) and member.tensors > 1


def _named(last: str, rule: Sequence[str]) -> bool:
    return any(fnmatchcase(last, pattern) for pattern in rule)
