"""A streamed model under several assignments side by side, block after block.

Every block is read once for all of them and for all batches that walk together. Between blocks the hidden states of
all assignments and batches wait on the host; a device holds one block, its rounded weights and one batch, or the
rounded weights outside the blocks of one assignment. Outputs are made one at a time, when they are asked for. The
operations are those of whole passes, and so are the bits.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hpcmpq.models.chain.chain import Call, Chain
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.chain.places import places_of_groups
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.weights import Tensors, swapped
from hpcmpq.quantized.variants import Variants
from hpcmpq.space import Assignment, Member

MAX_STATE_BYTES = 2**28
"""Hidden states that wait on the host at once, unless one chunk of samples has more."""


@dataclass
class _State:
    """Where one batch is under one assignment."""

    hidden: Tensor
    calls: tuple[Call, ...]


@dataclass
class _OutsideWeights:
    """What assignments make of the weights outside the blocks, made when it is needed and of one of them at a time."""

    variants: Variants
    options: list[Variants]
    formats: list[dict[Member, str]]
    _last: dict[tuple[bool, Member, str], Tensor] = field(default_factory=dict)

    def of(self, place: int, members: Iterable[Member]) -> Tensors:
        """{parameter: rounded weight} of these members under an assignment; the last one's that are others go first."""
        own, formats = self.options[place], self.formats[place]
        if not formats:  # the original, between two batches of an assignment
            return {}
        wanted = [(own is self.variants, member, formats[member]) for member in members if member in formats]
        self._last = {key: self._last[key] for key in wanted if key in self._last}
        for key in wanted:
            if key not in self._last:
                self._last[key] = own.rounded(*key[1:])
        return {member.parameter: tensor for (_, member, _), tensor in self._last.items()}

    def forget(self) -> None:
        """Let go of all."""
        self._last = {}


@dataclass(frozen=True)
class Ended:
    """Batches at the end of the last block.

    Attributes:
        walk: That brought them there.
        assignments: The models.
        batches: Inputs.
    """

    walk: "SideBySide"
    assignments: Sequence[Assignment]
    batches: Sequence[Inputs]
    _outside: _OutsideWeights
    _states: list[list[_State]]

    @torch.no_grad()
    def outputs(self, model: int, batch: int) -> Tensor:
        """z [N, T, V] of a batch under an assignment, both by number."""
        walk = self.walk
        hidden = self._states[model][batch].hidden.to(walk.device)
        with walk.under(self.assignments[model], self._outside.of(model, walk._outside)):
            return walk.chain.leave(walk.on_device(self.batches[batch]), hidden)


@dataclass(frozen=True)
class SideBySide:
    """The walk of a streamed model.

    Attributes:
        variants: Its options.
        chain: Its blocks.
        device: Where they run.
        _own_names: {weight: block's own name} of those that are read with each block.
        _outside: Weights that are in memory all the time.
        _shared: Those of them that each block has too.
    """

    variants: Variants
    chain: Chain
    device: torch.device
    _own_names: list[dict[Member, str]]
    _outside: list[Member]
    _shared: list[list[Member]]

    @property
    def searches_outside(self) -> bool:
        """Whether assignments differ in weights outside the blocks."""
        searched = {member for group in self.variants.space.groups for member in group.members}
        return not searched.isdisjoint(self._outside)

    @contextmanager
    def under(self, assignment: Assignment, outside: Tensors) -> Iterator[None]:
        """What lies outside the blocks, and all rounding of activations, as an assignment has them."""
        with swapped(self.variants.model, outside), self.variants.activations.rounded(assignment):
            yield

    def on_device(self, inputs: Inputs) -> Inputs:
        """The inputs where the model runs."""
        return {name: value.to(self.device) for name, value in inputs.items()}

    def together(self, num_models: int, chunks: Sequence[Sequence[Inputs]]) -> Iterator[range]:
        """Ranges of chunks of batches whose states under so many models may wait at once, and one chunk at least."""
        start, waiting = 0, 0
        for place, batches in enumerate(chunks):
            num_bytes = num_models * sum(map(self._state_bytes, batches))
            if place > start and waiting + num_bytes > MAX_STATE_BYTES:
                yield range(start, place)
                start, waiting = place, 0
            waiting += num_bytes
        if start < len(chunks):
            yield range(start, len(chunks))

    @torch.no_grad()
    def through(self, assignments: Sequence[Assignment], batches: Sequence[Inputs]) -> Ended:
        """All batches to the end of the last block under every assignment; an empty one is the original."""
        variants = self.variants
        formats = [
            {m: a[group.name] for group in variants.space.groups if group.name in a for m in group.members}
            for a in assignments
        ]
        options = [variants.under(assignment) for assignment in assignments]
        outside = _OutsideWeights(variants, options, formats)
        states: list[list[_State]] = []
        for place, assignment in enumerate(assignments):
            with self.under(assignment, outside.of(place, self._outside)):
                entered = [self.chain.enter(self.on_device(inputs)) for inputs in batches]
            states.append([_State(hidden.cpu(), calls) for hidden, calls in entered])
        outside.forget()
        for k, block in enumerate(self.chain.blocks):
            with self.chain.resident(k):
                own_names = self._own_names[k]
                # Made from the original's weights, before any of them is replaced.
                for place, assignment in enumerate(assignments):
                    inside = {
                        own_name: options[place].rounded(member, formats[place][member])
                        for member, own_name in own_names.items()
                        if member in formats[place]
                    }
                    shared = outside.of(place, self._shared[k])
                    with self.under(assignment, shared), swapped(block, inside):
                        for state in states[place]:
                            hidden = state.hidden.to(self.device)
                            state.hidden = self.chain.run(k, hidden, state.calls[k]).cpu()
        for each in states:
            for state in each:
                state.calls = ()
        return Ended(self, assignments, batches, outside, states)

    @torch.no_grad()
    def _state_bytes(self, inputs: Inputs) -> int:
        """Of one model's hidden state and of what its blocks are given beside it."""
        hidden, calls = self.chain.enter(self.on_device(inputs))
        given = {
            id(leaf): leaf.nbytes
            for call in calls
            for leaf in tree_leaves((call.args, call.kwargs))
            if isinstance(leaf, Tensor)
        }
        return hidden.nbytes + sum(given.values())


def find_walk(variants: Variants, inputs: Inputs) -> SideBySide | None:
    """How a streamed model runs side by side; None where it is in memory, or no chain of blocks.

    Args:
        variants: Its options.
        inputs: Of one sample or a few, to find the chain with.
    """
    streamed = variants.streamed
    if streamed is None:
        return None
    device = streamed.weights.device
    own = {name: value[:2].to(device) for name, value in inputs.items()}
    chain = find_chain(variants.model, own, variants.space.groups)
    if chain is None or tuple(chain.blocks) != streamed.blocks:
        return None
    own_names: list[dict[Member, str]] = [{} for _ in chain.blocks]
    outside: list[Member] = []
    shared: list[list[Member]] = [[] for _ in chain.blocks]
    places = places_of_groups(chain, variants.model, variants.space.groups)
    for group, names in zip(variants.space.groups, places, strict=True):
        for member in group.members:
            streams = streamed.is_streamed(member.parameter)
            if not streams:
                outside.append(member)
            for k, there in enumerate(names[1:]):
                if member.parameter in there and streams:
                    own_names[k][member] = there[member.parameter]
                elif member.parameter in there:
                    shared[k].append(member)
    chain = replace(chain, resident=streamed.resident)
    return SideBySide(variants, chain, device, own_names, outside, shared)
