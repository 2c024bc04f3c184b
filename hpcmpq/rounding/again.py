"""Rounding again at a solution: piece after piece, with the inputs that the rounded pieces before really give.

Inside a piece layers are taken in the order in which they run, those that are given the same tensor together. So a
layer's inputs hold the errors of all that is rounded before it, in earlier blocks and in its own.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

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
from hpcmpq.quantizers.gptq import COMPENSATED
from hpcmpq.rounding import RoundingMethod
from hpcmpq.rounding.layer_inputs import InputSums, SameInputs, inputs_in_order, no_sums, rows_given
from hpcmpq.rounding.linear_layers import is_linear_weight
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
        on_weight: Called with the weights done and of all.
    """

    variants: Variants
    assignment: Mapping[str, str]
    batches: list[Samples]
    method: RoundingMethod
    strength: float
    stored: StoredCodes
    on_weight: Callable[[int, int], None]

    @property
    def wanted(self) -> dict[Member, str]:
        """{weight: its format} of all that is rounded again."""
        return {
            member: self.assignment[group.name]
            for group in self.variants.space.groups
            for member in group.members
            if is_rounded_again(self.assignment[group.name], self.variants.quantizer)
            and is_linear_weight(self.variants.model, member)
        }

    @torch.no_grad()
    def run(self) -> frozenset[str]:
        """Make all codes; the names of the weights that have some."""
        variants, wanted = self.variants, self.wanted
        formats = {m: self.assignment[g.name] for g in variants.space.groups for m in g.members}
        rounds = rounds_activations(variants.space)
        states = ModelStates(
            variants.model,
            self.batches,
            self.method.needs_original,
            partial(variants.activations.rounded, self.assignment) if rounds else nullcontext,
            variants.streamed,
        )
        done: set[str] = set()
        for piece in states.pieces(variants.space.groups):
            with piece.resident():
                tensors: Tensors = {}
                for member, name in piece.names.items():
                    if member not in wanted:
                        tensors[name] = variants.rounded(member, formats[member])
                    elif self.stored.has(member):
                        tensors[name] = self._decoded(member, formats[member])
                        done.add(member.parameter)
                self._round(piece, tensors, wanted, done)
                for member, name in piece.names.items():
                    if name not in tensors:  # not given anything here
                        tensors[name] = variants.rounded(member, formats[member])
                for i in range(len(self.batches)):
                    piece.advance(i, piece.quantized(i, tensors))
        return frozenset(done)

    def _round(
        self, piece: ModelPiece, tensors: Tensors, wanted: Mapping[Member, str], done: set[str]
    ) -> None:
        """Round what the piece has not; adds to its tensors and to what is done."""
        model = self.variants.model
        layers = {m: holder_of(model, m) for m, name in piece.names.items() if name not in tensors}
        if not layers:
            return
        for same in inputs_in_order(partial(piece.quantized, 0, tensors), layers):
            sums = self._sums(piece, same, tensors)
            for member in same.layers if sums.num_rows else ():
                weight_MK = as_matrix(model.get_parameter(member.parameter), member)
                format, quantizer = FORMATS[wanted[member]], self.variants.quantizer
                codes = self.method.round(weight_MK, sums, format, quantizer, self.strength)
                self.stored.write(member, [(format.name, codes)], quantizer)
                tensors[piece.names[member]] = self._decoded(member, format.name)
                done.add(member.parameter)
                self.on_weight(len(done), len(wanted))

    def _sums(self, piece: ModelPiece, same: SameInputs, tensors: Tensors) -> InputSums:
        """Sums over the inputs that the layers are given by all batches."""
        member = next(iter(same.layers))
        device = self.variants.model.get_parameter(member.parameter).device
        crossed = self.method.needs_original
        sums = no_sums(member, device, crossed)
        for i, batch in enumerate(self.batches):
            masks = padding_masks(batch.inputs)
            found = rows_given(partial(piece.quantized, i, tensors), same, masks)
            original_NK: Tensor | None = None
            if crossed and found is not None:
                before = rows_given(partial(piece.original, i), same, masks)
                if before is not None and piece.num_positions(i) in (None, found[1]):
                    original_NK = before[0] if before[1] == found[1] else None
            if found is not None:
                sums.add(found[0], original_NK)
        if sums.num_rows < member.num_columns:  # a correction would be fitted to them
            sums.cross_KK = None
        return sums

    def _decoded(self, member: Member, format_name: str) -> Tensor:
        weight = self.variants.model.get_parameter(member.parameter)
        codes_MK, qparams = self.stored.read(member, format_name, weight)
        matrix_MK = decode(codes_MK, qparams, FORMATS[format_name], self.variants.quantizer)
        return from_matrix(matrix_MK, member, weight)


def is_rounded_again(format_name: str, quantizer: Quantizer) -> bool:
    """Whether codes in a format can be chosen: integers and ggml's, but those that another tool chose."""
    return FORMATS[format_name].type in COMPENSATED and format_name not in quantizer.checkpoints
