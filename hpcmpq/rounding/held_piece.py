"""What a worker of rounding again has in memory: a piece of the model, its weights by now, the states of a range."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from hpcmpq.models.weights import Tensors, holder_of
from hpcmpq.rounding.again import RoundingAgain
from hpcmpq.rounding.attempt import Steps, await_codes
from hpcmpq.rounding.kept_states import give_states, state_arrays
from hpcmpq.rounding.layer_inputs import SameInputs
from hpcmpq.rounding.pieces import ModelPiece


@dataclass
class HeldPiece:
    """It, of an attempt.

    Attributes:
        again: What is rounded, and how.
        steps: The shards.
        ranges: Of batches.
        tensors: The weights of the piece by now, by their names there.
    """

    again: RoundingAgain
    steps: Steps
    ranges: Sequence[range]
    tensors: Tensors = field(default_factory=dict)
    _place: int | None = None
    _inside: ExitStack = field(default_factory=ExitStack)
    _layers: list[SameInputs] = field(default_factory=list)
    _held: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.pieces = self.again.states.pieces(self.again.variants.space.groups)

    def leave(self) -> None:
        """Let go of the piece, but not of the states."""
        self._inside.close()
        self._place, self.tensors, self._layers = None, {}, []

    def enter(self, place: int, number: int | None) -> ModelPiece:
        """Have a piece in memory, and what its weights are by now.

        Args:
            place: Of the piece.
            number: Of layers whose weights are needed as they are; those before have their codes. None: all have.

        Raises:
            UserError: If codes that are there are not seen here.
        """
        if self._place != place:
            self.leave()
            self._inside.enter_context(self.pieces[place].resident())
            self._place = place
        self._await_codes(place, number)
        self.tensors = self.again.tensors(self.pieces[place], self.tensors)
        return self.pieces[place]

    def layers(self, place: int) -> list[SameInputs]:
        """The layers of a piece, by what they are given, as its step `order` found them."""
        if self._layers and self._place == place:
            return self._layers
        arrays = self.steps.read(f"{place}-order").arrays
        members = {m.parameter: m for m in self.again.wanted}
        model = self.again.variants.model
        found = []
        for number, calls in enumerate(arrays["calls"].tolist()):
            own = [members[name] for name in arrays["parameters"][arrays["layers"] == number]]
            found.append(SameInputs({m: holder_of(model, m) for m in own}, calls))
        if self._place == place:
            self._layers = found
        return found

    def hold(self, place: int, number: int) -> None:
        """Have the states of a range of samples before a piece, and of no others."""
        if self._held == (place, number):
            return
        self._held = None
        self.again.states.let_go()
        if place > 0:
            give_states(self.again.states, self.steps.read(f"{place - 1}-states-{number}").arrays)
        self._held = place, number

    def advanced(self, place: int, number: int) -> dict[str, np.ndarray]:
        """The states of a range behind a piece, which are held then."""
        piece = self.enter(place, None)
        self.hold(place, number)
        self._held = None  # until all are past the piece
        self.again.advance(piece, self.tensors, self.ranges[number])
        self._held = place + 1, number
        return state_arrays(self.again.states, self.ranges[number])

    def _await_codes(self, place: int, number: int | None) -> None:
        """Wait for codes that other nodes have written: without them weights would be taken for unrounded ones."""
        missing = self.again.missing(self.pieces[place])
        if number == 0 or not missing:
            return
        if number is not None or self.steps.is_there(f"{place}-order"):
            layers = self.layers(place)[:number]
            own = [
                same for k, same in enumerate(layers) if not self.steps.made_nothing(f"{place}-{k}-rows-0")
            ]
            missing = [member for same in own for member in same.layers]
        await_codes(self.again.stored, missing)
