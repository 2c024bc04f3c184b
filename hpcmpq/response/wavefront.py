"""The wavefront: outputs of many options from one walk along a chain of blocks.

The original's hidden state and, beside it, the states of all options spawned so far move from block to block.
At block k each option of a group in k runs the block with its quantized weight, starting from the original's
state; every older option runs it with the original weights. One `vmap` runs several options, and whatever lies
before the changed weight inside the block is computed once for all of them.

Shape letters: Q options of one pass, N samples; a state is [N, ...] as the blocks pass it on.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hpcmpq.errors import UserError, raise_if_no_room
from hpcmpq.models.chain.chain import Call, Chain, same_values
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.weights import Tensors
from hpcmpq.response.block_options import Changes
from hpcmpq.response.fallback import Fallback, Responses
from hpcmpq.response.kept_choices import KeptChoices

log = logging.getLogger(__name__)

Wave = list[tuple[list[int], Tensor]]
"""States of spawned options: (options, [Q, N, ...])."""

PUSHED_ELEMENTS, PUSHED_ROWS = 2**17, 2**8
"""Elements that a CPU pushes at once, to stay in its cache; at least so many rows, or products are a quarter slower."""


@dataclass
class Wavefront:
    """The engine for models that are chains.

    Attributes:
        chain: The model.
        changes: What the options do to it.
        options_per_pass: Options that one vmap runs.
        options_per_wave: Options that walk together: their states are all in memory, each wave needs the blocks, and it
            may have more options as long as their states are no larger than `wave_bytes`.
        fallback: What runs a batch on which the model's code raises, or None to let it raise.
        vectorised: Whether vmap works on this model; otherwise options run one by one.
        choices: Of experts, which options keep where they are active.
        _batches: {(block, N): whether it takes several options as one batch}, found by comparing.
    """

    chain: Chain
    changes: Changes
    options_per_pass: int
    options_per_wave: int
    wave_bytes: int = 0
    fallback: Fallback | None = None
    vectorised: bool = True
    choices: KeptChoices = field(default_factory=KeptChoices)
    _batches: dict[tuple[int, int], bool] = field(default_factory=dict)

    def respond(self, inputs: Inputs, options: Sequence[int]) -> Responses:
        """The original's outputs z0 [N, T, V], and (options, z [Q, N, T, V]) of all `options`, block by block."""
        own, other = self._respond, self.fallback
        return own(inputs, options) if other is None else other.respond(own, inputs, options)

    def _respond(self, inputs: Inputs, options: Sequence[int]) -> Responses:
        with self.changes.recording("enter"):
            hidden, calls = self.chain.enter(inputs)
        base = [hidden]
        waves = self._waves(options, hidden.numel() * hidden.element_size())
        first = self._walk(inputs, base, calls, waves[0])
        with self.changes.recording("leave"):
            z0_NTV = self.chain.leave(inputs, base[-1])

        def outputs() -> Iterator[tuple[list[int], Tensor]]:
            for place, members in enumerate(waves):
                wave = self._walk(inputs, base, calls, members) if place else first
                while wave:
                    yield from self._leave(inputs, *self._together(wave))

        return z0_NTV, outputs()

    def _waves(self, options: Sequence[int], state_bytes: int) -> list[list[int]]:
        """Whole groups, in the order of their first blocks, as many at a time as a wave may hold; one at least."""
        most = max(self.options_per_wave, self.wave_bytes // state_bytes)
        waves: list[list[int]] = [[]]
        ordered = sorted(options, key=lambda p: (self.changes.first_block(p), p))
        for _, same_group in groupby(ordered, self.changes.group):
            members = list(same_group)
            if waves[-1] and len(waves[-1]) + len(members) > most:
                waves.append([])
            waves[-1] += members
        return waves

    def _walk(self, inputs: Inputs, base: list[Tensor], calls: tuple[Call, ...], options: list[int]) -> Wave:
        """States of the options after the last block; completes `base`, the original's states between blocks."""
        wave: Wave = [entry for p in options for entry in self._enter(inputs, base[0], calls, p)]
        first = min(map(self.changes.first_block, options), default=len(calls))
        for k in range(len(calls)):
            known = len(base) > k + 1
            if known and k < first:
                continue
            with self.chain.resident(k):
                if not known or self.changes.products is not None:
                    with self.changes.recording("block"), self.choices.recording(k):
                        state = self.chain.run(k, base[k], calls[k])
                    if not known:
                        base.append(state)
                wave = self._step(k, base[k], calls[k], wave, options)
        spawned = {p for members, _ in wave for p in members}
        return wave + [([p], base[-1][None]) for p in options if p not in spawned]

    def _enter(self, inputs: Inputs, hidden: Tensor, calls: tuple[Call, ...], option: int) -> Wave:
        """The state of an option of the prologue's weights; none if its hidden state is the original's."""
        if not self.changes.is_outside(option):
            return []
        with self.changes.outside("enter", option):
            own, own_calls = self.chain.enter(inputs)
        if not same_values([(c.args, c.kwargs) for c in calls], [(c.args, c.kwargs) for c in own_calls]):
            name = self.changes.group_name(option)
            raise UserError(
                f"{name} changes what all blocks are given, not only the hidden state; exclude it"
            )
        return [] if torch.equal(own, hidden) else [([option], own[None])]

    def _step(self, k: int, hidden: Tensor, call: Call, wave: Wave, options: list[int]) -> Wave:
        """All states after block k: older options pass it as it is, its own run it with their weights."""
        own = [p for p in options if self.changes.is_inside(p, k)]
        after: Wave = []

        run = partial(self._block, k, call)
        while wave:
            members, states = wave.pop(0)
            if set(own).isdisjoint(members):
                after += self._push(k, call, members, states)
                continue
            for place, p in enumerate(members):  # its group has weights in an earlier place too
                changes = self.changes.inside([p], k) if p in own else ({}, {}, {})
                after.append(([p], self._map("block", run, states[place : place + 1], [p], *changes)))
            own = [p for p in own if p not in members]
        for _, same_group in groupby(own, self.changes.group):
            ready = list(same_group)
            for i in range(0, len(ready), self.options_per_pass):
                members = ready[i : i + self.options_per_pass]
                changes = self.changes.inside(members, k)
                after.append((members, self._map("block", partial(run, hidden), None, members, *changes)))
        return after

    def _push(self, k: int, call: Call, members: list[int], states: Tensor) -> Wave:
        """States through block k with its own weights, several options as one batch where the block allows."""
        key = k, states.shape[1]
        if key not in self._batches and len(states) > 1:
            self._batches[key] = self._takes_batches(k, call, states[:2])
        if not self._batches.get(key, True):
            return [(members, self._map("block", partial(self._block, k, call), states))]
        elements = max(PUSHED_ELEMENTS, PUSHED_ROWS * states.shape[-1])
        size = max(1, elements // states[0].numel()) if states.device.type == "cpu" else len(states)
        parts = []
        for part in states.split(size):
            with self.changes.replaying("block", {}):
                parts.append(self._run_flat(k, call, part))
        return [(members[i * size : (i + 1) * size], part) for i, part in enumerate(parts)]

    def _block(self, k: int, call: Call, state: Tensor, tensors: Tensors | None = None) -> Tensor:
        with self.choices.replaying(k):
            return self.chain.run(k, state, call, tensors)

    def _takes_batches(self, k: int, call: Call, states: Tensor) -> bool:
        """Whether block k gives several options in one batch what it gives each alone, in every precision used."""

        def alike(batch: Tensor, alone: Tensor, eps: float) -> bool:
            return bool((batch - alone).abs().max() <= eps * alone.abs().max())

        products, eps = self.changes.products, 64 * torch.finfo(states.dtype).eps
        alone = self._map("block", partial(self._block, k, call), states)
        if not self.vectorised:  # what a block does may depend on values, so also on who else is in the batch
            return False
        try:
            if products is not None:
                each = torch.stack([self._block(k, call, state) for state in states])
                if not alike(self._run_flat(k, call, states), each, eps):
                    return False
                eps = torch.finfo(products.dtype).eps
            with self.changes.replaying("block", {}):
                return alike(self._run_flat(k, call, states), alone, eps)
        except Exception as error:  # the block's own code
            raise_if_no_room(error)
            return False

    def _run_flat(self, k: int, call: Call, states: Tensor) -> Tensor:
        """The block on options × samples as one batch."""
        count, num_samples = states.shape[:2]

        def repeat(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == num_samples > 1:
                return value.repeat(count, *[1] * (value.ndim - 1))
            return value

        wide = Call(tree_map(repeat, call.args), tree_map(repeat, call.kwargs), call.key)
        return self._block(k, wide, states.flatten(0, 1)).unflatten(0, (count, num_samples))

    def _together(self, wave: Wave) -> tuple[list[int], Tensor]:
        """Options from the front of a wave that leave in one pass: pushed apart, alike for the epilogue."""
        members, states = wave.pop(0)
        parts = [states]
        while wave and len(members) + len(wave[0][0]) <= self.options_per_pass:
            if self.changes.is_outside(members[0]) or self.changes.is_outside(wave[0][0][0]):
                break
            more, states = wave.pop(0)
            members = members + more
            parts.append(states)
        return members, parts[0] if len(parts) == 1 else torch.cat(parts)

    def _leave(
        self, inputs: Inputs, members: list[int], states: Tensor
    ) -> Iterator[tuple[list[int], Tensor]]:
        if self.changes.is_outside(members[0]):
            for place, p in enumerate(members):
                with self.changes.outside("leave", p):
                    yield [p], self.chain.leave(inputs, states[place])[None]
        else:
            yield members, self._map("leave", lambda state, _: self.chain.leave(inputs, state), states)

    def _map(
        self,
        scope: str,
        run: Callable[..., Tensor],
        states: Tensor | None,
        members: Sequence[int] = (),
        tensors: Tensors | None = None,
        deltas: Tensors | None = None,
        index: Tensors | None = None,
    ) -> Tensor:
        """run(state, tensors) of every option, or run(tensors) where all start from one state; stacked.

        Where `index` numbers the `members`, each rounds the activations of their group in its own way.
        """
        stacks = (() if states is None else (states,), tensors or {}, deltas or {}, index or {})

        def one(own: tuple[Tensor, ...], tensors: Tensors, deltas: Tensors, index: Tensors) -> Tensor:
            with self.changes.replaying(scope, deltas), self.changes.rounding(members, index.get("option")):
                return run(*own, tensors)

        if self.vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return torch.func.vmap(one)(*stacks)
            except Exception as error:  # the model's own code
                raise_if_no_room(error)
                log.info("options run one by one: vmap cannot run this model (%s)", str(error).split("\n")[0])
                self.vectorised = False
        each = range(len(tree_leaves(stacks)[0]))
        return torch.stack([one(*tree_map(lambda stack, i=i: stack[i], stacks)) for i in each])
