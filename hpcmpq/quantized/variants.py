"""Quantized variants of a model's groups, made on the fly: never all of them at once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from random import Random

import torch
from torch import Tensor, nn

from hpcmpq.formats import Quantizer
from hpcmpq.models.attention_products import attach_products
from hpcmpq.models.data.kept_samples import kept_samples
from hpcmpq.models.load import forward, load_model, pick_device
from hpcmpq.models.original_marks import check_same_outputs, check_same_settings
from hpcmpq.models.streaming import Streamed
from hpcmpq.models.weight_digests import check_same_weights
from hpcmpq.models.weights import as_matrix, from_matrix, swapped
from hpcmpq.plan import Plan
from hpcmpq.quantized.activations import Activations, read_maxima
from hpcmpq.quantized.rounded_weights import RoundedWeights
from hpcmpq.quantized.source_codes import SourceCodes, source_codes
from hpcmpq.quantized.stored_codes import SolutionCodes, StoredCodes
from hpcmpq.quantized.stored_ranges import StoredRanges
from hpcmpq.quantizers.codes import QParams
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.run_dir import RunDir

KEPT_BYTES = 2**26
"""Rounded weights of all options together up to which they are kept."""


@dataclass
class Variants:
    """The options of a search space as tensors, and where they round activations (`activations`).

    A model whose products are searched multiplies through modules of its own from here on.

    Rounded weights are kept where all of them together are small; else `RoundedWeights` keeps qparams.

    Attributes:
        model: The original.
        space: Groups and options.
        quantizer: How weights and activations are rounded.
        maxima: {module: largest inputs} for static ranges of activations, see `hpcmpq.quantized.activations`.
        codes: Where stored codes are, see `hpcmpq.quantized.stored_codes`.
        solved: Codes that replace the options' under one whole assignment.
        sources: {parameter: weight to round from} where the model has other weights for now.
        streamed: The model's blocks, where they are read when they run.
        source: Codes of the files that the model came in, if it came quantized.
        ranges: Where qparams are that the run's processes have chosen.
    """

    model: nn.Module
    space: SearchSpace
    quantizer: Quantizer
    maxima: Mapping[str, tuple[float, ...]] | None = None
    codes: StoredCodes | SolutionCodes | None = None
    solved: SolutionCodes | None = None
    sources: Mapping[str, Tensor] | None = None
    streamed: Streamed | None = None
    source: SourceCodes | None = None
    ranges: StoredRanges | None = None
    _qparams: dict[tuple[str, str], QParams] = field(default_factory=dict)
    _kept: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        attach_products(self.model, self.space.groups)

    @cached_property
    def activations(self) -> Activations:
        """What the options do to activations."""
        return Activations(self.model, self.space, self.quantizer, self.maxima)

    def originals(self, group: Group) -> dict[str, Tensor]:
        """{parameter: original weight} of a group."""
        return {member.parameter: self._weight(member) for member in group.members}

    def _weight(self, member: Member) -> Tensor:
        """The original weight, wherever it is: the model's own may be changed, or absent, while its block is read."""
        name = member.parameter
        if self.sources is not None and name in self.sources:
            return self.sources[name]
        if self.streamed is not None and name in self.streamed.originals:
            return self.streamed.originals[name]
        weight = self.model.get_parameter(name)
        return self.streamed.weights.read(name) if weight.is_meta and self.streamed is not None else weight

    @torch.no_grad()
    def quantized(self, group: Group, format_name: str) -> dict[str, Tensor]:
        """{parameter: weight rounded to a format}, same shape and dtype as the original; not to be changed."""
        if (group.name, format_name) in self._kept:
            return dict(self._kept[group.name, format_name])
        tensors = {member.parameter: self.rounded(member, format_name) for member in group.members}
        if self._keeps:
            self._kept[group.name, format_name] = dict(tensors)
        return tensors

    @torch.no_grad()
    def rounded(self, member: Member, format_name: str, weight: Tensor | None = None) -> Tensor:
        """One weight, given or the model's, rounded to a format, same shape and dtype as the original."""
        weight = self._weight(member) if weight is None else weight
        rounded_MK = self._rounded.decoded(member, format_name, as_matrix(weight, member))
        return from_matrix(rounded_MK, member, weight)

    @torch.no_grad()
    def encoded(self, member: Member, format_name: str) -> tuple[Tensor, QParams]:
        """What a checkpoint stores of a weight: its codes [M, K] and what they mean."""
        return self._rounded.encoded(member, format_name, self._matrix(member))

    @cached_property
    def _rounded(self) -> RoundedWeights:
        return RoundedWeights(
            self.quantizer, self.codes, self._qparams, self._largest, self.source, self.ranges
        )

    def _largest(self, member: Member) -> Tensor:
        """The largest absolute weight of a member's group."""
        group = next(group for group in self.space.groups if member in group.members)
        return torch.stack([weight.abs().max() for weight in self.originals(group).values()]).max()

    @cached_property
    def _keeps(self) -> bool:
        """Whether rounded weights are kept: they are small, and the model's own are all in memory."""
        itemsize = next(self.model.parameters()).element_size()
        pairs = zip(self.space.groups, self.space.formats, strict=True)
        num_bytes = itemsize * sum(group.numel * len(formats) for group, formats in pairs)
        return num_bytes <= KEPT_BYTES and not any(p.is_meta for p in self.model.parameters())

    @torch.no_grad()
    def store_ranges(self, seed: int) -> None:
        """Choose the qparams of all options that no process of the run has chosen yet, for all of them.

        Args:
            seed: Of the order: processes that begin together choose for different weights.
        """
        if self._keeps:
            return
        pairs = zip(self.space.groups, self.space.formats, strict=True)
        members = [(member, formats) for group, formats in pairs for member in group.members]
        Random(seed).shuffle(members)
        for member, formats in members:
            dtype = self.model.get_parameter(member.parameter).dtype
            self._rounded.store_ranges(member, formats, dtype, partial(self._matrix, member))

    def _matrix(self, member: Member) -> Tensor:
        return as_matrix(self._weight(member), member)

    @torch.no_grad()
    def errors(self, group_index: int) -> dict[str, Tensor]:
        """{parameter: δ = Q(w) − w of every option of a group, stacked in front, [K, *shape]}."""
        group = self.space.groups[group_index]
        originals = self.originals(group)
        stacks: dict[str, list[Tensor]] = {name: [] for name in originals}
        for format_name in self.space.formats[group_index]:
            for name, tensor in self.quantized(group, format_name).items():
                stacks[name].append(tensor - originals[name])
        return {name: torch.stack(tensors) for name, tensors in stacks.items()}

    def under(self, assignment: Mapping[str, str]) -> "Variants":
        """The options as a model with {group name: format name} has them.

        They are the same, but for the assignment that weights were rounded again for.
        """
        if self.solved is None or dict(assignment) != dict(self.solved.assignment):
            return self
        return self._solved

    @cached_property
    def _solved(self) -> "Variants":
        return replace(self, codes=self.solved, solved=None, _kept={})

    @contextmanager
    def assigned(self, assignment: Mapping[str, str]) -> Iterator[None]:
        """The model with {group name: format name} applied to weights and activations; the original returns after."""
        with self.weighting(assignment)(), self.activations.rounded(assignment):
            yield

    def weighting(self, assignment: Mapping[str, str]) -> Callable[[], AbstractContextManager[None]]:
        """What makes contexts in which the model has the weights of {group name: format name}.

        They are rounded once; those of a streamed block whenever it is read.
        """
        if self.streamed is None:
            tensors = self.weights(assignment)
            return lambda: swapped(self.model, tensors)
        streamed = self.streamed
        formats = {m.parameter: (m, assignment[g.name]) for g in self._named(assignment) for m in g.members}
        inside = {name: chosen for name, chosen in formats.items() if streamed.is_streamed(name)}
        options = self.under(assignment)
        tensors = {name: options.rounded(*chosen) for name, chosen in formats.items() if name not in inside}

        def change(name: str, weight: Tensor) -> Tensor:
            return options.rounded(*inside[name], weight) if name in inside else weight

        @contextmanager
        def weighted() -> Iterator[None]:
            with streamed.changed(change), swapped(self.model, tensors):
                yield

        return weighted

    def weights(self, assignment: Mapping[str, str]) -> dict[str, Tensor]:
        """{parameter: rounded weight} of {group name: format name}."""
        tensors: dict[str, Tensor] = {}
        options = self.under(assignment)
        for group in self._named(assignment):
            tensors.update(options.quantized(group, assignment[group.name]))
        return tensors

    def _named(self, assignment: Mapping[str, str]) -> list[Group]:
        return [group for group in self.space.groups if group.name in assignment]

    def among(self, space: SearchSpace) -> "Variants":
        """Some of the options, always rounded from the weights that the model has now, whatever it has later."""
        members = [member for group in space.groups for member in group.members]
        present = [m for m in members if not self.model.get_parameter(m.parameter).is_meta]
        return replace(self, space=space, sources={m.parameter: self._weight(m).detach() for m in present})


def open_variants(
    run: RunDir,
    plan: Plan,
    model: nn.Module | None = None,
    *,
    streamed: Streamed | None = None,
    check_outputs: bool = True,
) -> Variants:
    """The options of a planned run, with its static ranges; its model is loaded as the plan says unless given.

    Args:
        run: A planned run directory.
        plan: Its plan.
        model: The original.
        streamed: The same where its blocks are read when they run.
        check_outputs: Whether to run it once and compare with the plan; callers that run it anyway do so themselves.

    Raises:
        PlanMismatch: If the model has changed since it was planned for.
    """
    config = plan.config
    if streamed is not None:
        model = streamed.model
    if model is None:
        model = load_model(config.model, import_paths=plan.import_paths)
    check_same_settings(model, plan)
    check_same_weights(model, plan)
    if check_outputs and plan.original and (samples := kept_samples(run, plan)) is not None:
        first = samples[:1].to(pick_device(config.model.device)).inputs
        with torch.no_grad():
            check_same_outputs(plan, first, forward(model, first))
    codes = StoredCodes(run, plan.fingerprint)
    maxima = read_maxima(run, plan.fingerprint)
    source = source_codes(plan, model)
    ranges = StoredRanges(run, plan.fingerprint)
    return Variants(
        model, plan.space, config.quantizer, maxima, codes, streamed=streamed, source=source, ranges=ranges
    )
