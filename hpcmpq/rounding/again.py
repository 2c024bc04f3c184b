"""Rounding again at a solution: piece after piece, with the inputs that the rounded pieces before really give.

Inside a piece layers are taken in the order in which they run, those that are given the same tensor together. So a
layer's inputs hold the errors of all that is rounded before it, in earlier blocks and in its own.

Here are the steps, and one process that takes them all; `again_units` shares them out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, groupby
from operator import itemgetter

import torch
from torch import Tensor

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.weights import Tensors, as_matrix, from_matrix, holder_of
from hpcmpq.quantized.activations import rounds_activations
from hpcmpq.quantized.padding import padding_masks
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.quantized.variants import Variants
from hpcmpq.quantizers import decode
from hpcmpq.quantizers.codes import QParams, joined
from hpcmpq.quantizers.gptq import COMPENSATED
from hpcmpq.rounding import RoundingMethod
from hpcmpq.rounding.cuts import Cuts, MemberRows
from hpcmpq.rounding.layer_inputs import InputSums, SameInputs, inputs_in_order, no_sums, rows_given
from hpcmpq.rounding.linear_layers import is_linear_weight
from hpcmpq.rounding.methods import Fitted, rounded_rows
from hpcmpq.rounding.pieces import ModelPiece, ModelStates
from hpcmpq.space import Member


@dataclass(frozen=True)
class RoundingAgain:
    """What to round, and how.

    Attributes:
        variants: The original and the options of the plan.
        assignment: {group: format} of all groups.
        batches: Samples of one pass each, on the model's device.
        method: How.
        strength: Of the method.
        stored: Where codes go, and are found of an interrupted attempt.
        cuts: How the work is cut.
    """

    variants: Variants
    assignment: Mapping[str, str]
    batches: list[Samples]
    method: RoundingMethod
    strength: float
    stored: StoredCodes
    cuts: Cuts = field(default_factory=Cuts)

    @cached_property
    def formats(self) -> dict[Member, str]:
        """{weight: its format} of all."""
        groups = self.variants.space.groups
        return {member: self.assignment[group.name] for group in groups for member in group.members}

    @cached_property
    def wanted(self) -> dict[Member, str]:
        """{weight: its format} of all that is rounded again."""
        return {
            member: name
            for member, name in self.formats.items()
            if is_rounded_again(name, self.variants.quantizer)
            and is_linear_weight(self.variants.model, member)
        }

    @cached_property
    def states(self) -> ModelStates:
        """Of both models, before any piece."""
        rounds = rounds_activations(self.variants.space)
        return ModelStates(
            self.variants.model,
            self.batches,
            self.method.needs_original,
            partial(self.variants.activations.rounded, self.assignment) if rounds else nullcontext,
            self.variants.streamed,
        )

    @torch.no_grad()
    def run(self, on_weight: Callable[[int, int], None]) -> frozenset[str]:
        """Make all codes; the names of the weights that have some.

        Args:
            on_weight: Called with the weights done and of all.
        """
        done: set[str] = set()
        ranges = self.cuts.sample_ranges(self.batches)
        pieces = self.states.pieces(self.variants.space.groups)
        for piece in pieces:
            with piece.resident():
                tensors = self.tensors(piece)
                done |= {
                    m.parameter for m, name in piece.names.items() if m in self.wanted and name in tensors
                }
                for same in self.same_inputs(piece) if self.missing(piece) else ():
                    missing = [member for member in same.layers if piece.names[member] not in tensors]
                    if not missing:
                        continue
                    sums = self.added(
                        self.sums(piece, same, tensors, (ranges[k] for k in part))
                        for part in self.cuts.sum_parts(len(ranges), missing[0].num_columns)
                    )
                    if not sums.num_rows:
                        continue
                    fitted = self.method.fit(sums, self.variants.quantizer, self.strength)
                    del sums
                    for member, codes in self.rounded(missing, fitted):
                        self.stored.write(member, [(self.wanted[member], codes)], self.variants.quantizer)
                        tensors[piece.names[member]] = self.decoded(member)
                        done.add(member.parameter)
                        on_weight(len(done), len(self.wanted))
                if piece is not pieces[-1]:
                    self.advance(piece, tensors, range(len(self.batches)))
        return frozenset(done)

    def missing(self, piece: ModelPiece) -> list[Member]:
        """Weights of a piece that are to have codes and have none yet."""
        return [m for m in piece.names if m in self.wanted and not self.stored.is_there(m)]

    def tensors(self, piece: ModelPiece, known: Mapping[str, Tensor] | None = None) -> Tensors:
        """What a piece's weights are by now, by their names there; those that are to be rounded yet are left out.

        Args:
            piece: In memory.
            known: Those that were found before.
        """
        tensors = dict(known or {})
        for member, name in piece.names.items():
            if name not in tensors and (member not in self.wanted or self.stored.is_there(member)):
                tensors[name] = self.decoded(member) if member in self.wanted else self._planned(member)
        return tensors

    def same_inputs(self, piece: ModelPiece) -> list[SameInputs]:
        """The layers of a piece that are rounded, by what they are given, in the order in which they run."""
        layers = {m: holder_of(self.variants.model, m) for m in piece.names if m in self.wanted}
        fixed = {name: self._planned(m) for m, name in piece.names.items() if m not in self.wanted}
        return inputs_in_order(partial(piece.quantized, 0, fixed), layers) if layers else []

    def sums(
        self, piece: ModelPiece, same: SameInputs, tensors: Tensors, ranges: Iterable[range]
    ) -> InputSums:
        """Sums over the inputs that layers are given by some batches.

        Args:
            piece: Theirs, in memory.
            same: The layers.
            tensors: What the piece's weights are by now.
            ranges: Of batches whose states are before the piece when each is asked for.
        """
        member = next(iter(same.layers))
        crossed = self.method.needs_original
        sums = no_sums(member, self.variants.model.get_parameter(member.parameter).device, crossed)
        for i in chain.from_iterable(ranges):
            masks = padding_masks(self.batches[i].inputs)
            found = rows_given(partial(piece.quantized, i, tensors), same, masks)
            original_NK: Tensor | None = None
            if crossed and found is not None:
                before = rows_given(partial(piece.original, i), same, masks)
                if before is not None and piece.num_positions(i) in (None, found[1]):
                    original_NK = before[0] if before[1] == found[1] else None
            if found is not None:
                sums.add(found[0], original_NK)
        return sums

    def added(self, parts: Iterable[InputSums]) -> InputSums:
        """All sums over a layer's inputs, in their order."""
        several = iter(parts)
        total = next(several)
        for part in several:
            total.absorb(part)
        if total.num_rows < len(total.hessian_KK):  # a correction would be fitted to them
            total.cross_KK = None
        return total

    def rounded(
        self, members: Sequence[Member], fitted: Fitted
    ) -> Iterable[tuple[Member, tuple[Tensor, QParams]]]:
        """Codes of whole weights that are given the same inputs, one weight after another."""
        rows_in_order = chain.from_iterable(self.row_parts(members))
        for member, rows in groupby(rows_in_order, key=itemgetter(0)):
            codes, qparams = zip(*(self.rounded_rows(each, fitted) for each in rows), strict=True)
            whole = codes[0], qparams[0]
            yield member, (torch.cat(codes), joined(list(qparams))) if len(codes) > 1 else whole

    def row_parts(self, members: Sequence[Member]) -> list[list[MemberRows]]:
        """Rows that are rounded together, of weights that are given the same inputs."""
        device = self.variants.model.get_parameter(members[0].parameter).device
        return self.cuts.row_parts(members, device.type == "cpu")

    def rounded_rows(self, rows: MemberRows, fitted: Fitted) -> tuple[Tensor, QParams]:
        """Codes of some rows of a weight, which is in memory."""
        member, part = rows
        weight_RK = as_matrix(self.variants.model.get_parameter(member.parameter), member)[part]
        format, quantizer = FORMATS[self.wanted[member]], self.variants.quantizer
        return rounded_rows(weight_RK, fitted, format, quantizer, self.strength)

    def advance(self, piece: ModelPiece, tensors: Tensors, batches: Iterable[int]) -> None:
        """Move the states of some batches past a piece; what was given no inputs is rounded as the plan rounds it."""
        unseen = {name: self._planned(m) for m, name in piece.names.items() if name not in tensors}
        for i in batches:
            piece.advance(i, piece.quantized(i, {**tensors, **unseen}))

    def decoded(self, member: Member) -> Tensor:
        """A weight that has codes here."""
        weight = self.variants.model.get_parameter(member.parameter)
        name = self.formats[member]
        codes_MK, qparams = self.stored.read(member, name, weight)
        matrix_MK = decode(codes_MK, qparams, FORMATS[name], self.variants.quantizer)
        return from_matrix(matrix_MK, member, weight)

    def _planned(self, member: Member) -> Tensor:
        return self.variants.rounded(member, self.formats[member])


def is_rounded_again(format_name: str, quantizer: Quantizer) -> bool:
    """Whether codes in a format can be chosen: integers and ggml's, but those that another tool chose."""
    return FORMATS[format_name].type in COMPENSATED and format_name not in quantizer.checkpoints
