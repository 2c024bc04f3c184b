"""The plan of a run: search space, work units, and the fingerprint of all that changes a number."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hpcmpq.settings import Config, from_values, to_values
from hpcmpq.space import Group, Member, Product, SearchSpace


@dataclass(frozen=True)
class WorkUnit:
    """Groups [group_start, group_stop) measured on calibration samples [sample_start, sample_stop).

    Attributes:
        id: Hash of the plan's fingerprint and the ranges; the name of its shard.
    """

    id: str
    group_start: int
    group_stop: int
    sample_start: int
    sample_stop: int

    @property
    def size(self) -> int:
        """Groups times samples: what the time of a unit grows with where no group takes longer than another."""
        return (self.group_stop - self.group_start) * (self.sample_stop - self.sample_start)

    def __str__(self) -> str:
        return (
            f"{self.id} (groups {self.group_start}-{self.group_stop - 1}, "
            f"samples {self.sample_start}-{self.sample_stop - 1})"
        )


@dataclass(frozen=True)
class UnitOutcome:
    """How one attempt of a unit ended.

    Attributes:
        unit: The unit.
        seconds: Wall time of the measurement, without the start of its process; 0 if it failed.
        error: None when its shard is on disk, else one line that says what happened.
        final: False when the unit will be tried again.
        node: Where it was tried, or an empty string.
    """

    unit: WorkUnit
    seconds: float
    error: str | None = None
    final: bool = True
    node: str = ""


CHOICES, KEPT = "sensitivity.choices", "kept"
"""A fact, and its value, of models whose options keep the original's choices of experts while they are measured."""

WIDE = "sensitivity.dtype"
"""A fact of bfloat16 models whose method runs no options through an engine: the dtype that it measures in instead.
Older plans lack it and go on in bfloat16, in which an 8-bit option drowns in rounding."""

NODE_ATTEMPTS = 2
"""Times that a unit fails on a node before it goes to another, if there is one."""


@dataclass(frozen=True)
class Plan:
    """Everything that workers and later stages need to know.

    Attributes:
        config: Of the run, with every default filled in.
        space: Groups and their formats.
        units: Work units, in the order in which `reduce` adds them up.
        facts: What changes a number, as flat {name: value}: settings, digests of weights and samples.
        fingerprint: Hash of `facts`.
        import_paths: Directories that factories are imported from.
        fixed_bytes: Bytes of the checkpoint outside the searched groups.
        environment: Versions and commit, for people.
        weights: {parameter or buffer: digest of a few of its values}, see `hpcmpq.models.weight_digests`; empty in
            older plans.
        original: Settings of the original and some of its outputs, see `hpcmpq.models.original_marks`; empty in
            older plans.
        balanced: How `calibration.balance_experts` chose the samples to fit rounding on, see
            `hpcmpq.planning.balanced_samples`; empty without it.
        active_fixed_bytes: Of these, bytes that are read for a token; None in older plans, and where samples are no
            tokens.
        tokens_per_sample: Of the sample that arithmetic was counted on; 0 likewise.
        original_bits: Of a weight in the dtype that `config.json` names; None in older plans.
        times: Values of `time.json` beside the plan, from which latencies are priced; None before `hpcmpq time`.
        rounds: Of a run that is screened, a plan for each set of options that are measured together, see `in_rounds`.
        whole_space: Of such a run, the groups with all formats, measured or not.
    """

    config: Config
    space: SearchSpace
    units: tuple[WorkUnit, ...]
    facts: dict[str, Any]
    fingerprint: str
    import_paths: tuple[str, ...]
    fixed_bytes: int
    environment: dict[str, str]
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    original: dict[str, Any] = dataclasses.field(default_factory=dict)
    balanced: dict[str, Any] = dataclasses.field(default_factory=dict)
    active_fixed_bytes: int | None = None
    tokens_per_sample: int = 0
    original_bits: int | None = None
    times: dict[str, Any] | None = None
    rounds: tuple["Plan", ...] = ()
    whole_space: SearchSpace | None = None

    @property
    def whole(self) -> "Plan":
        """This plan with all options."""
        return replace(self, space=self.whole_space or self.space, rounds=(), whole_space=None, times=None)

    def rows_of(self, unit: WorkUnit) -> slice | np.ndarray:
        """The options that a unit measures, in the order of its shard."""
        own = self._round_of.get(unit.id, self)
        start = own.space.slice_of(unit.group_start).start
        part = slice(start, own.space.slice_of(unit.group_stop - 1).stop)
        return part if own is self else self.space.places_of(own.space.options[part], own.space)

    def work_of(self, unit: WorkUnit) -> int:
        """What the time of a calibration unit grows with: samples times blocks that the original and options run."""
        own = self._round_of.get(unit.id, self)
        run_G = own._blocks_run_G
        return (unit.sample_stop - unit.sample_start) * (
            own._num_blocks + sum(run_G[unit.group_start : unit.group_stop])
        )

    @cached_property
    def _num_blocks(self) -> int:
        return 1 + max(group.block or 0 for group in self.space.groups)

    @cached_property
    def _blocks_run_G(self) -> list[int]:
        """Blocks that the options of each group run: its own and those behind it, or all in whole passes."""
        whole = self.config.sensitivity.engine == "whole"
        return [
            len(names) * (self._num_blocks - (0 if whole else group.block or 0))
            for group, names in zip(self.space.groups, self.space.formats, strict=True)
        ]

    @cached_property
    def _round_of(self) -> dict[str, "Plan"]:
        return {unit.id: own for own in self.rounds for unit in own.units}


def make_units(
    fingerprint: str, num_groups: int, num_samples: int, *, groups_per_unit: int, samples_per_unit: int
) -> tuple[WorkUnit, ...]:
    """The grid of work units, sample range by sample range."""
    units = []
    for sample_start in range(0, num_samples, samples_per_unit):
        sample_stop = min(sample_start + samples_per_unit, num_samples)
        for group_start in range(0, num_groups, groups_per_unit):
            group_stop = min(group_start + groups_per_unit, num_groups)
            ranges = (group_start, group_stop, sample_start, sample_stop)
            units.append(WorkUnit(content_hash([fingerprint, *ranges])[:12], *ranges))
    return tuple(units)


def in_rounds(plan: Plan, rounds: Sequence[Iterable[int]]) -> Plan:
    """The plan of some options alone, measured a set after another on the same samples.

    The units of a set are those of its own groups and options, and are named after them: a set that comes later leaves
    what is measured as it is.

    Args:
        plan: Of all options.
        rounds: Indices of each set's options; together they have some of every group.
    """
    parts, union = [], set[int]()
    first, size = plan.units[0], plan.config.sensitivity.groups_per_unit
    for options in map(sorted, rounds):
        space = plan.space.among(options)
        units = make_units(
            content_hash([plan.fingerprint, "options", options]),
            len(space.groups),
            max(unit.sample_stop for unit in plan.units),
            groups_per_unit=size or len(space.groups),
            samples_per_unit=first.sample_stop - first.sample_start,
        )
        parts.append(replace(plan, space=space, units=units))
        union |= set(options)
    together = tuple(unit for part in parts for unit in part.units)
    return replace(
        plan, space=plan.space.among(union), units=together, rounds=tuple(parts), whole_space=plan.space
    )


def content_hash(values: Any) -> str:
    """SHA-256 of plain JSON values, independent of key order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Plain values of a plan, for `plan.json`."""
    return {
        "format_version": 1,
        "fingerprint": plan.fingerprint,
        "environment": plan.environment,
        "config": to_values(plan.config),
        "import_paths": list(plan.import_paths),
        "fixed_bytes": plan.fixed_bytes,
        "active_fixed_bytes": plan.active_fixed_bytes,
        "tokens_per_sample": plan.tokens_per_sample,
        "original_bits": plan.original_bits,
        "num_options": plan.space.num_options,
        "facts": plan.facts,
        "weights": plan.weights,
        "original": plan.original,
        "balanced": plan.balanced,
        "groups": [dataclasses.asdict(group) for group in plan.space.groups],
        "formats": [list(names) for names in plan.space.formats],
        "units": [dataclasses.asdict(unit) for unit in plan.units],
    }


def plan_from_json(values: dict[str, Any]) -> Plan:
    """The plan in the values of `plan.json`."""
    config = values["config"]
    if values.get("active_fixed_bytes") is not None and not values.get("tokens_per_sample"):
        raise ValueError("active_fixed_bytes without tokens_per_sample")
    # Plans made before the key was there keep their samples as they are.
    calibration = {"special_tokens": None} | config["calibration"]
    return Plan(
        config=from_values(Config, config | {"calibration": calibration}),
        space=SearchSpace(
            tuple(_group(group) for group in values["groups"]),
            tuple(tuple(names) for names in values["formats"]),
        ),
        units=tuple(WorkUnit(**unit) for unit in values["units"]),
        facts=values["facts"],
        fingerprint=values["fingerprint"],
        import_paths=tuple(values["import_paths"]),
        fixed_bytes=values["fixed_bytes"],
        environment=values["environment"],
        weights=values.get("weights", {}),
        original=values.get("original", {}),
        balanced=values.get("balanced", {}),
        active_fixed_bytes=values.get("active_fixed_bytes"),
        tokens_per_sample=values.get("tokens_per_sample", 0),
        original_bits=values.get("original_bits"),
    )


def _group(values: dict[str, Any]) -> Group:
    members = tuple(Member(**member) for member in values["members"])
    products = tuple(Product(**product) for product in values.get("products", ()))
    return Group(values["name"], members, values["block"], products)
