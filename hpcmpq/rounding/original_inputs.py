"""Σ x xᵀ over the inputs that the original gives its layers and experts: what a worker keeps between its work units.

States of all samples stand before some block, in memory of the host. Layers of that block and of later ones are reached
by going on, those of earlier ones by beginning again: a worker whose units come in the order of the model runs every
block once, and no other worker has to be asked for anything. A model that is no chain of blocks runs whole, for as many
of the layers still to come as there is room for.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial

from torch import Tensor, nn

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.streaming import Streamed
from hpcmpq.models.weights import holder_of
from hpcmpq.quantized.padding import padding_masks, without_padding
from hpcmpq.rounding.layer_inputs import InputSums, hooked, inputs_in_order, no_sums
from hpcmpq.rounding.matrices import OwnMatrix, SeenExperts, matrices_of, without_padding_inside
from hpcmpq.rounding.pieces import ModelPiece, ModelStates
from hpcmpq.space import Group, Member

SUMS_BYTES = 2**32
"""Of Σ x xᵀ held at once; beyond it the samples run through the block again for its next layers."""


@dataclass
class OriginalInputs:
    """The walk of one worker through the original.

    Attributes:
        model: The original.
        groups: Of the search space.
        batches: Samples of one pass each, on the model's device.
        members: All weights that are ever asked for, in the order in which they probably will be.
        streamed: The model's blocks, where they are read when they run.
    """

    model: nn.Module
    groups: Sequence[Group]
    batches: list[Samples]
    members: Sequence[Member]
    streamed: Streamed | None = None
    _ahead: dict[OwnMatrix, InputSums] = field(default_factory=dict)
    _reached: int = 0

    @cached_property
    def _states(self) -> ModelStates:
        return ModelStates(self.model, self.batches, tracked=False, streamed=self.streamed)

    @cached_property
    def _pieces(self) -> list[ModelPiece]:
        return self._states.pieces(self.groups)

    def of(self, members: Sequence[Member]) -> Iterator[tuple[list[OwnMatrix], InputSums]]:
        """(matrices that are given the same, their sums), of all matrices of `members`, a few at a time.

        Where the model is streamed, the weights are in memory until the next ones are asked for.
        """
        if len(self._pieces) == 1:
            for part in _parts(matrices_of(self.model, members)):
                yield from _shared(self._of_whole_model(part))
            return
        places = {m: [k for k, piece in enumerate(self._pieces) if m in piece.names] for m in members}
        if min(ks[0] for ks in places.values()) < self._reached:
            self._states.restart()
            self._reached = 0
        held: dict[OwnMatrix, InputSums] = {}  # of weights that later blocks have too
        for k in range(self._reached, 1 + max(ks[-1] for ks in places.values())):
            self._reached = len(self._pieces)  # begin again, unless all of this ends well
            piece = self._pieces[k]
            here = [m for m in members if m in piece.names]
            with piece.resident():
                parts = list(_parts(matrices_of(self.model, here))) or [[]]
                for number, part in enumerate(parts, 1):
                    sums = self._gathered(piece, part, advance=number == len(parts))
                    sums |= {m: sums[m] + held.pop(m) for m in part if m in held}
                    held |= {m: sums.pop(m) for m in part if places[m.member][-1] > k}
                    yield from _shared(sums)
            self._reached = k + 1

    def _of_whole_model(self, matrices: list[OwnMatrix]) -> dict[OwnMatrix, InputSums]:
        """Of a model in one piece; sums of matrices still to come are kept, as far as there is room."""
        if not all(matrix in self._ahead for matrix in matrices):
            self._ahead.clear()
            every = matrices_of(self.model, self.members)
            later = every[every.index(matrices[-1]) + 1 :]
            together = next(_parts(dict.fromkeys([*matrices, *later])))
            self._ahead.update(self._gathered(self._pieces[0], together, advance=False))
        return {matrix: self._ahead.pop(matrix) for matrix in matrices}

    def _gathered(
        self, piece: ModelPiece, matrices: Sequence[OwnMatrix], advance: bool
    ) -> dict[OwnMatrix, InputSums]:
        """Sums over the inputs that matrices are given in a piece; the same object where they are given the same."""
        layers = {m.member: holder_of(self.model, m.member) for m in matrices if m.expert is None}
        experts = [matrix for matrix in matrices if matrix.expert is not None]
        first: dict[Member, InputSums] = {}
        found: dict[OwnMatrix, InputSums] = {}
        for same in inputs_in_order(partial(piece.quantized, 0, {}), layers) if layers else ():
            member = next(iter(same.layers))
            first[member] = self._none_of(member)
            found |= {OwnMatrix(each): first[member] for each in same.layers}
        found |= {matrix: self._none_of(matrix.member) for matrix in experts}
        seen = SeenExperts(self.model, experts, lambda m, x_NK: found[m].add(x_NK, None))
        for i, batch in enumerate(self.batches):
            masks = padding_masks(batch.inputs)
            with (
                hooked({member: layers[member] for member in first}, partial(_add, first, masks)),
                without_padding_inside({holder_of(self.model, m.member) for m in experts}, masks),
                seen if experts else nullcontext(),
            ):
                output = piece.quantized(i, {})
            if advance:
                piece.advance(i, output)
        return found

    def _none_of(self, member: Member) -> InputSums:
        return no_sums(member, self.model.get_parameter(member.parameter).device, crossed=False)


def _add(sums: dict[Member, InputSums], masks: tuple[Tensor, ...], member: Member, x: Tensor) -> None:
    sums[member].add(without_padding(x, masks).reshape(-1, member.num_columns), None)


def _shared(sums: dict[OwnMatrix, InputSums]) -> Iterator[tuple[list[OwnMatrix], InputSums]]:
    """The matrices that share one object; it is let go of before the next."""
    while sums:
        own = next(iter(sums.values()))
        matrices = [matrix for matrix, other in sums.items() if other is own]
        for matrix in matrices:
            del sums[matrix]
        yield matrices, own


def _parts(matrices: Iterable[OwnMatrix]) -> Iterator[list[OwnMatrix]]:
    """The matrices in turns whose sums fit into `SUMS_BYTES`."""
    part: list[OwnMatrix] = []
    num_bytes = 0
    for matrix in matrices:
        size = 8 * matrix.member.num_columns**2
        if part and num_bytes + size > SUMS_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(matrix)
        num_bytes += size
    if part:
        yield part
