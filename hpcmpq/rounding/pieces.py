"""A model in the pieces that rounding again walks through: what comes before its blocks, each block, what comes after.

Of every piece the original and the quantized model have states of their own, batch by batch, at the border that the
walk has reached: the one runs from the original's, the other from what the rounded pieces before really gave.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.models.chain.chain import Call, Chain
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.chain.places import places_of_groups
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import forward
from hpcmpq.models.streaming import Streamed, streamed_chain
from hpcmpq.models.weights import Tensors, swapped
from hpcmpq.rounding.waiting_calls import WaitingCalls
from hpcmpq.space import Group, Member

Names = Mapping[Member, str]
"""{weight: its name inside a piece}."""


@dataclass(frozen=True)
class ModelPiece:
    """What runs at once.

    Attributes:
        names: Its searched weights.
        original: Runs batch i of the original up to the end of the piece.
        quantized: The same of the quantized model, with {name: value} of the piece's weights; with none it is the
            original, if all pieces before were.
        advance: Called for batches with what `quantized` gave in the end: their states move past the piece.
        resident: Makes contexts in which the piece's weights are in memory.
        num_positions: Of batch i, or None where it is not known: rows that a layer is given which sees all of them.
    """

    names: Names
    original: Callable[[int], object]
    quantized: Callable[[int, Tensors], Any]
    advance: Callable[[int, Any], None]
    resident: Callable[[], AbstractContextManager[None]]
    num_positions: Callable[[int], int | None]


@dataclass
class ModelStates:
    """The states of all batches.

    Attributes:
        model: The original.
        batches: On the model's device.
        tracked: Whether the original's states are wanted beside the quantized model's.
        rounding: Context in which the quantized model's activations are rounded.
        streamed: The model's blocks, where they are read when they run.
    """

    model: nn.Module
    batches: list[Samples]
    tracked: bool
    rounding: Callable[[], AbstractContextManager[None]] = nullcontext
    streamed: Streamed | None = None
    _original: dict[int, Tensor] = field(default_factory=dict)
    _quantized: dict[int, Tensor] = field(default_factory=dict)
    _calls: WaitingCalls = field(default_factory=WaitingCalls)
    _chain: Chain | None = None

    def restart(self) -> None:
        """Back before the first piece."""
        self._original.clear()
        self._quantized.clear()
        self._calls.clear()

    def let_go(self) -> None:
        """Let go of all states; what blocks are given beside them stays."""
        self._original.clear()
        self._quantized.clear()

    def of(self, i: int) -> dict[str, Tensor]:
        """The states of batch i: `quantized`, and `original` where they are tracked."""
        original = {"original": self._original[i]} if self.tracked else {}
        return {"quantized": self._quantized[i], **original}

    def given(self, i: int, states: Mapping[str, Tensor]) -> None:
        """Have the states of batch i from another walk (`of`) before a piece of `pieces`."""
        assert self._chain is not None
        if i not in self._calls:
            with torch.no_grad():
                self._calls.keep(i, self._chain.enter(self.batches[i].inputs)[1])
        self._quantized[i] = states["quantized"]
        if self.tracked:
            self._original[i] = states["original"]

    def pieces(self, groups: Sequence[Group]) -> list[ModelPiece]:
        """The pieces, to be run one after the other: all batches advance past one before the next runs.

        A model that is no chain of blocks is one piece.

        Raises:
            UserError: If it is streamed and no chain.
        """
        chain = find_chain(self.model, self.batches[0][:2].inputs, groups)
        chain = self._chain = streamed_chain(chain, self.streamed)
        if chain is None:
            return [self._whole(groups)]
        places = places_of_groups(chain, self.model, groups)
        names: list[dict[Member, str]] = [{} for _ in range(len(chain.blocks) + 1)]
        for group, own in zip(groups, places, strict=True):
            for member in group.members:
                for place, there in enumerate(own):
                    if member.parameter in there:
                        names[place][member] = there[member.parameter]
        blocks = [self._block(chain, k, names[k + 1]) for k in range(len(chain.blocks))]
        return [self._before(chain, names[0]), *blocks, *([self._after(chain, names[0])] if names[0] else [])]

    def _whole(self, groups: Sequence[Group]) -> ModelPiece:
        names = {member: member.parameter for group in groups for member in group.members}

        def run(i: int, tensors: Tensors | None = None) -> object:
            return self._as(tensors, partial(forward, self.model, self.batches[i].inputs))

        return ModelPiece(names, run, run, lambda _i, _z: None, nullcontext, lambda _: None)

    def _before(self, chain: Chain, names: Names) -> ModelPiece:
        def run(i: int, tensors: Tensors | None = None) -> tuple[Tensor, tuple[Call, ...]]:
            return self._as(tensors, partial(chain.enter, self.batches[i].inputs))

        def advance(i: int, output: tuple[Tensor, tuple[Call, ...]]) -> None:
            hidden, calls = run(i)
            self._calls.keep(i, calls)
            if self.tracked:
                self._original[i] = hidden.cpu()
            self._quantized[i] = output[0].cpu()

        return ModelPiece(names, run, run, advance, nullcontext, lambda _: None)

    def _block(self, chain: Chain, k: int, names: Names) -> ModelPiece:
        def run(i: int, states: dict[int, Tensor], tensors: Tensors | None) -> Tensor:
            device = next(iter(self.batches[i].inputs.values())).device
            return chain.run(k, states[i].to(device), self._calls.call(i, k), tensors)

        def original(i: int) -> Tensor:
            return run(i, self._original, None)

        def quantized(i: int, tensors: Tensors) -> Tensor:
            with self.rounding():
                return run(i, self._quantized, tensors)

        def advance(i: int, output: Tensor) -> None:
            if self.tracked:
                self._original[i] = original(i).cpu()
            self._quantized[i] = output.cpu()

        def num_positions(i: int) -> int:
            return self._quantized[i].shape[:-1].numel()

        return ModelPiece(names, original, quantized, advance, partial(chain.resident, k), num_positions)

    def _after(self, chain: Chain, names: Names) -> ModelPiece:
        def leaving(i: int, states: dict[int, Tensor]) -> Callable[[], Tensor]:
            inputs = self.batches[i].inputs
            return partial(chain.leave, inputs, states[i].to(next(iter(inputs.values())).device))

        def original(i: int) -> Tensor:
            return leaving(i, self._original)()

        def quantized(i: int, tensors: Tensors) -> Tensor:
            return self._as(tensors, leaving(i, self._quantized))

        return ModelPiece(names, original, quantized, lambda _i, _z: None, nullcontext, lambda _: None)

    def _as(self, tensors: Tensors | None, run: Callable[[], Any]) -> Any:
        """A pass with other weights and rounded activations; of the original without them."""
        if tensors is None:
            return run()
        with torch.no_grad(), swapped(self.model, tensors), self.rounding():
            return run()
