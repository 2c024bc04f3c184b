"""What exports can hold of a run, as far as its config and its model say: planning and exporting ask alike.

Of a target planning refuses what its export would refuse of every solution, before anything is measured; without one
it says which exports can be written.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.export import EXPORTERS
from hpcmpq.models.split_weights import unsaved
from hpcmpq.settings import Config
from hpcmpq.space import Group, SearchSpace
from hpcmpq.tables import named_by
from hpcmpq.targets import find_target

UNSURE = {"onnx": "if torch can trace the model"}
"""Exports that may refuse what `check` of their module cannot see, with what that depends on."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSubject:
    """What is to be exported, before anything is measured or solved.

    Attributes:
        config: Of the run.
        space: Its groups and the formats of each.
        model: The original; it needs no values.
    """

    config: Config
    space: SearchSpace
    model: nn.Module

    @property
    def weights(self) -> tuple[Group, ...]:
        """The groups that are no caches."""
        return tuple(group for group in self.space.groups if not group.is_cache)

    @cached_property
    def unsaved(self) -> list[str]:
        """The searched weights that transformers saves joined with others only."""
        return unsaved(self.model, [member for group in self.weights for member in group.members])


def check_exportable(name: str, subject: ExportSubject) -> None:
    """Raise `UserError` if the export called `name` can hold no solution, whatever its formats."""
    caches = any(group.is_cache for group in subject.space.groups)
    if caches and name not in ("fake_quantized", "compressed_tensors"):
        raise UserError(
            f"{name} says nothing of a cache of keys and values; export compressed_tensors, with target: vllm, whose "
            "command does"
        )
    if name != "fake_quantized" and any(group.products for group in subject.weights):
        raise UserError(
            f"{name} holds no formats of attention products; plan without groups.attention_products, or export "
            "fake_quantized"
        )
    _named(name, "check")(subject)


def lost_options(name: str, subject: ExportSubject) -> dict[str, tuple[str, ...]]:
    """{group: its formats that an export cannot hold} of the groups that have such.

    Raises:
        UserError: If it can hold no solution.
    """
    check_exportable(name, subject)
    held, found = _named(name, "held"), {}
    for group, names in zip(subject.space.groups, subject.space.formats, strict=True):
        kept = names if group.is_cache else held(subject, group, names)
        if len(kept) < len(names):
            found[group.name] = tuple(each for each in names if each not in kept)
    return found


def check_exports(subject: ExportSubject, planned: bool = False) -> None:
    """Refuse what the export of the config's target would refuse; without a target say which exports there may be.

    Args:
        subject: What is planned.
        planned: Whether it is there already, and may be measured: it is warned of, not refused.

    Raises:
        UserError: As the export does.
    """
    if subject.config.target is None:
        if subject.config.model.path is not None:
            _log.info("%s", outlook(subject))
        return
    name = find_target(subject.config.target).export
    try:
        lost_options(name, subject)  # formats that it cannot hold were left out of the space
    except UserError as refusal:
        if not planned:
            raise
        _log.warning("hpcmpq export --format %s will refuse every solution: %s", name, refusal)
        return
    if subject.config.target == "transformers":
        _warn_of_transformers(subject)


def _warn_of_transformers(subject: ExportSubject) -> None:
    """Say which solutions' checkpoints transformers will not load, or not as they are."""
    from hpcmpq.export.loadable import not_for_transformers, not_loaded

    model, pairs = subject.model, zip(subject.space.groups, subject.space.formats, strict=True)
    chosen = {member: names for group, names in pairs for member in group.members}
    if (reason := not_loaded(model, subject.config.quantizer, chosen)) is not None:
        _log.warning(
            "a solution's checkpoint may not be loaded: %s; target: vllm is for other readers", reason
        )
    for clause in not_for_transformers(model, chosen):
        _log.warning("a solution's checkpoint may be %s", clause)


def outlook(subject: ExportSubject) -> str:
    """Which exports can hold every solution, which some, and which none, in a sentence."""
    every: list[str] = []
    some: list[str] = []
    none: list[str] = []
    for name in EXPORTERS:
        try:
            lost = lost_options(name, subject)
        except UserError:
            none.append(name)
            continue
        formats = dict.fromkeys(each for own in lost.values() for each in own)
        provisos = [f"not {', '.join(formats)}"] if lost else []
        provisos += [UNSURE[name]] if name in UNSURE else []
        (some if provisos else every).append(f"{name} ({', '.join(provisos)})" if provisos else name)
    sentence = f"exports that can hold every solution: {', '.join(every)}"
    sentence += f"; some: {', '.join(some)}" if some else ""
    if none:
        sentence += f"; none: {', '.join(none)} (a target in the config says why)"
    return sentence


def _named(name: str, function: str) -> Any:
    """A function of the module of an export, which is called as it is."""
    return named_by(f"hpcmpq.export.{name}:{function}")
