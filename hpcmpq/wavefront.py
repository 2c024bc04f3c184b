"""The wavefront: outputs of many options from one walk along a chain of blocks.

The original's hidden state and, beside it, the states of all options spawned so far move from block to block.
At block k each option of a group in k runs the block with its quantized weight, starting from the original's
state; every older option runs it with the original weights. One `vmap` runs several options, and whatever lies
before the changed weight inside the block is computed once for all of them.

Shape letters: K options of one pass, N samples; a state is [N, ...] as the blocks pass it on.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hpcmpq.compensated import Products
from hpcmpq.errors import UserError
from hpcmpq.models.chain import Call, Chain, Inputs, same_values
from hpcmpq.models.groups import swapped
from hpcmpq.variants import Variants

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
Wave = list[tuple[list[int], Tensor]]
"""States of spawned options: (options, [K, N, ...])."""

PUSHED_ELEMENTS = 2**18
"""Elements of hidden states that a CPU pushes through a block at once, so that its cache holds them."""


@dataclass
class Wavefront:
    """The engine for models that are chains.

    Attributes:
        chain: The model.
        variants: Quantized weights.
        options_per_pass: Options that one vmap runs.
        options_per_wave: Options that walk the chain together: all states of a wave are in memory at once, and
            each wave needs the blocks it passes.
        products: Low-precision matrix products with compensated differences, or None.
        vectorised: Whether vmap works on this model; otherwise options run one by one.
    """

    chain: Chain
    variants: Variants
    options_per_pass: int
    options_per_wave: int
    products: Products | None = None
    vectorised: bool = True
    _names: list[list[dict[str, str]]] = field(init=False)
    _batches: bool | None = None

    def __post_init__(self) -> None:
        self._names = _parameter_names(self.chain, self.variants)

    def respond(
        self, inputs: Inputs, options: Sequence[int]
    ) -> tuple[Tensor, Iterator[tuple[list[int], Tensor]]]:
        """The original's outputs z0 [N, T, V], and (options, z [K, N, T, V]) of all `options`, block by block."""
        with self._recording("enter"):
            hidden, calls = self.chain.enter(inputs)
        base = [hidden]
        waves = self._waves(options)
        first = self._walk(inputs, base, calls, waves[0])
        with self._recording("leave"):
            z0_NTV = self.chain.leave(inputs, base[-1])

        def outputs() -> Iterator[tuple[list[int], Tensor]]:
            wave = first
            for place in range(len(waves)):
                if place:
                    wave = self._walk(inputs, base, calls, waves[place])
                while wave:
                    yield from self._leave(inputs, *wave.pop(0))

        return z0_NTV, outputs()

    def _waves(self, options: Sequence[int]) -> list[list[int]]:
        """Whole groups, in the order of their first blocks, as many at a time as a wave may hold; one at least."""
        waves: list[list[int]] = [[]]
        ordered = sorted(options, key=lambda p: (self._first_block(p), p))
        for _, same_group in groupby(ordered, self._group):
            members = list(same_group)
            if waves[-1] and len(waves[-1]) + len(members) > self.options_per_wave:
                waves.append([])
            waves[-1] += members
        return waves

    def _walk(self, inputs: Inputs, base: list[Tensor], calls: tuple[Call, ...], options: list[int]) -> Wave:
        """States of the options after the last block; completes `base`, the original's states between blocks."""
        wave: Wave = [entry for p in options for entry in self._enter(inputs, base[0], calls, p)]
        first = min(map(self._first_block, options), default=len(calls))
        for k in range(len(calls)):
            known = len(base) > k + 1
            if known and k < first:
                continue
            with self.chain.resident(k):
                if not known or self.products is not None:
                    with self._recording("block"):
                        state = self.chain.run(k, base[k], calls[k])
                    if not known:
                        base.append(state)
                wave = self._step(k, base[k], calls[k], wave, options)
        spawned = {p for members, _ in wave for p in members}
        return wave + [([p], base[-1][None]) for p in options if p not in spawned]

    def _enter(self, inputs: Inputs, hidden: Tensor, calls: tuple[Call, ...], option: int) -> Wave:
        """The state of an option of the prologue's weights; none if its hidden state is the original's."""
        if not self._names[self._group(option)][0]:
            return []
        with self._assigned("enter", option):
            own, own_calls = self.chain.enter(inputs)
        if not same_values([(c.args, c.kwargs) for c in calls], [(c.args, c.kwargs) for c in own_calls]):
            name = self.variants.space.groups[self._group(option)].name
            raise UserError(
                f"{name} changes what all blocks are given, not only the hidden state; exclude it"
            )
        return [] if torch.equal(own, hidden) else [([option], own[None])]

    def _step(self, k: int, hidden: Tensor, call: Call, wave: Wave, options: list[int]) -> Wave:
        """All states after block k: older options pass it as it is, its own run it with their weights."""
        own = [p for p in options if self._names[self._group(p)][k + 1]]
        after: Wave = []

        def run(state: Tensor, tensors: Tensors) -> Tensor:
            return self.chain.run(k, state, call, tensors)

        while wave:
            members, states = wave.pop(0)
            if set(own).isdisjoint(members):
                after.append((members, self._push(k, call, states)))
                continue
            for place, p in enumerate(members):  # its group has weights in an earlier place too
                changes = self._changes([p], k) if p in own else ({}, {}, {})
                after.append(([p], self._map("block", run, states[place : place + 1], [p], *changes)))
            own = [p for p in own if p not in members]
        for _, same_group in groupby(own, self._group):
            ready = list(same_group)
            for i in range(0, len(ready), self.options_per_pass):
                members = ready[i : i + self.options_per_pass]
                shared = partial(run, hidden)
                after.append((members, self._map("block", shared, None, members, *self._changes(members, k))))
        return after

    def _push(self, k: int, call: Call, states: Tensor) -> Tensor:
        """All states through block k with its own weights, as one batch where the block allows."""

        def run(state: Tensor, _: Tensors) -> Tensor:
            return self.chain.run(k, state, call)

        if self.products is not None or self._batches is False:
            return self._map("block", run, states)
        size = max(1, PUSHED_ELEMENTS // states[0].numel()) if states.device.type == "cpu" else len(states)
        parts = [self._run_flat(k, call, part) for part in states.split(size)]
        flat = None if any(part is None for part in parts) else torch.cat(parts)  # type: ignore[arg-type]
        if self._batches is None:
            exact = self._map("block", run, states)
            limit = 64 * torch.finfo(states.dtype).eps * float(exact.abs().max())
            self._batches = flat is not None and bool((flat - exact).abs().max() <= limit)
            if not self._batches:
                return exact
        assert flat is not None
        return flat

    def _run_flat(self, k: int, call: Call, states: Tensor) -> Tensor | None:
        """The block on options × samples as one batch; None if its other arguments do not follow."""
        count, num_samples = states.shape[:2]

        def repeat(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == num_samples > 1:
                return value.repeat(count, *[1] * (value.ndim - 1))
            return value

        wide = Call(tree_map(repeat, call.args), tree_map(repeat, call.kwargs), call.key)
        try:
            return self.chain.run(k, states.flatten(0, 1), wide).unflatten(0, (count, num_samples))
        except RuntimeError:
            if self._batches:
                raise
            return None

    def _leave(
        self, inputs: Inputs, members: list[int], states: Tensor
    ) -> Iterator[tuple[list[int], Tensor]]:
        if self._names[self._group(members[0])][0]:
            for place, p in enumerate(members):
                with self._assigned("leave", p):
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
            with self._replaying(scope, deltas), self._rounding(members, index.get("option")):
                return run(*own, tensors)

        if self.vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return torch.func.vmap(one)(*stacks)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                log.info("options run one by one: vmap cannot run this model (%s)", str(error).split("\n")[0])
                self.vectorised = False
        count = len(tree_leaves(stacks)[0])
        return torch.stack([one(*tree_map(lambda stack, i=i: stack[i], stacks)) for i in range(count)])

    def _changes(self, members: list[int], k: int) -> tuple[Tensors, Tensors, Tensors]:
        """Weights to replace, by block k's own names, errors of low-precision products, and the number of each
        option where activations are rounded; stacked, [K, ...].
        """
        names = self._names[self._group(members[0])][k + 1]
        tensors: dict[str, list[Tensor]] = {}
        deltas: dict[str, list[Tensor]] = {}
        for p in members:
            for name, tensor in self._quantized(p).items():
                if name in names and self.products is not None and name in self.products.weights:
                    deltas.setdefault(name, []).append(tensor - self.variants.model.get_parameter(name))
                elif name in names:
                    tensors.setdefault(names[name], []).append(tensor)
        group = self._group(members[0])
        rounds = self.variants.activations.rounds(group) or not (tensors or deltas)
        device = next(iter(self.variants.model.parameters())).device
        index = {"option": torch.arange(len(members), device=device)} if rounds else {}
        return _stacked(tensors), _stacked(deltas), index

    @contextmanager
    def _assigned(self, scope: str, option: int) -> Iterator[None]:
        """Prologue and epilogue with an option's weights."""
        tensors = {
            n: t for n, t in self._quantized(option).items() if n in self._names[self._group(option)][0]
        }
        deltas = {}
        if self.products is not None:
            for name in self.products.weights & tensors.keys():
                deltas[name] = tensors.pop(name) - self.variants.model.get_parameter(name)
        space = self.variants.space
        own = {space.groups[self._group(option)].name: space.options[option].format}
        rounded = self.variants.activations.rounded(own)
        with swapped(self.variants.model, tensors), self._replaying(scope, deltas), rounded:
            yield

    def _recording(self, scope: str) -> AbstractContextManager[None]:
        return nullcontext() if self.products is None else self.products.recording(scope)

    def _replaying(self, scope: str, deltas: Tensors) -> AbstractContextManager[None]:
        return nullcontext() if self.products is None else self.products.replaying(scope, deltas)

    def _rounding(self, members: Sequence[int], index: Tensor | None) -> AbstractContextManager[None]:
        if index is None:
            return nullcontext()
        formats = [self.variants.space.options[p].format for p in members]
        return self.variants.activations.rounded_by_index(self._group(members[0]), formats, index)

    def _quantized(self, option: int) -> Tensors:
        chosen = self.variants.space.options[option]
        return self.variants.quantized(self.variants.space.groups[chosen.group], chosen.format)

    def _group(self, option: int) -> int:
        return self.variants.space.options[option].group

    def _first_block(self, option: int) -> int:
        """The first block that an option changes; 0 for weights of prologue or epilogue."""
        return max(
            0, next(place for place, names in enumerate(self._names[self._group(option)]) if names) - 1
        )


def _parameter_names(chain: Chain, variants: Variants) -> list[list[dict[str, str]]]:
    """{model's name: block's own name} of every group's parameters and products, by place: outside, block 0, 1, ..."""
    places: dict[int, list[tuple[int, str]]] = {}
    for k, block in enumerate(chain.blocks):
        for own_name, parameter in block.named_parameters():
            places.setdefault(id(parameter), []).append((k + 1, own_name))
        for own_name, module in block.named_modules():
            places.setdefault(id(module), []).append((k + 1, own_name))
    names: list[list[dict[str, str]]] = []
    for group in variants.space.groups:
        names.append([{} for _ in range(len(chain.blocks) + 1)])
        for member in group.members:
            parameter = variants.model.get_parameter(member.parameter)
            for place, own_name in places.get(id(parameter), [(0, member.parameter)]):
                names[-1][place][member.parameter] = own_name
        for product in group.products:
            module = variants.model.get_submodule(product.module)
            for place, own_name in places.get(id(module), [(0, product.module)]):
                names[-1][place][product.module] = own_name
    return names


def _stacked(lists: dict[str, list[Tensor]]) -> Tensors:
    return {name: torch.stack(tensors) for name, tensors in lists.items()}
