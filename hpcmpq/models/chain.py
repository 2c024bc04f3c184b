"""Models that are a chain: prologue → block 0 → … → block L−1 → epilogue, found by watching one forward pass.

Nothing here knows an architecture. A list of modules is a chain of blocks if each runs once, in order, the first
output of one is the hidden state of the next, and everything else that a block is given (masks, rotary
embeddings) stays the same when the blocks are replaced by the identity. The prologue is the model's forward
cut off at the last block; the epilogue is the same forward with the blocks handing on a given hidden state.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.models.outputs import forward

log = logging.getLogger(__name__)

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Call:
    """What a block is given beside its hidden state.

    Attributes:
        args: Positional arguments; the hidden state's place holds None.
        kwargs: Keyword arguments, without the hidden state.
        key: Position or keyword of the hidden state.
    """

    args: tuple[Any, ...] = (None,)
    kwargs: dict[str, Any] = field(default_factory=dict)
    key: int | str = 0

    def arguments(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments for a hidden state."""
        if isinstance(self.key, str):
            return self.args, {**self.kwargs, self.key: hidden}
        return (*self.args[: self.key], hidden, *self.args[self.key + 1 :]), self.kwargs


def always_resident(block: int) -> AbstractContextManager[None]:
    """The block's weights are in memory anyway."""
    return nullcontext()


@dataclass(frozen=True)
class Chain:
    """A model cut into blocks that pass one tensor on.

    Attributes:
        blocks: The modules, in order.
        enter: Inputs to the hidden state before block 0, and the call of every block.
        leave: (inputs, hidden state after the last block) to the outputs z, [N, T, V].
        resident: Context in which the weights of block k are in memory.
    """

    blocks: tuple[nn.Module, ...]
    enter: Callable[[Inputs], tuple[Tensor, tuple[Call, ...]]]
    leave: Callable[[Inputs, Tensor], Tensor]
    resident: Callable[[int], AbstractContextManager[None]] = always_resident

    def run(self, k: int, hidden: Tensor, call: Call, tensors: dict[str, Tensor] | None = None) -> Tensor:
        """The hidden state after block k; `tensors` replace some of its parameters, by the block's own names."""
        args, kwargs = call.arguments(hidden)
        if not tensors:
            return _first(self.blocks[k](*args, **kwargs))
        return _first(torch.func.functional_call(self.blocks[k], tensors, args, kwargs))


@torch.no_grad()
def find_chain(model: nn.Module, inputs: Inputs) -> Chain | None:
    """The chain that a model is, or None, with the reason logged.

    A candidate only counts if prologue, blocks and epilogue together give the model's outputs to rounding.

    Args:
        model: In eval mode.
        inputs: Of one or a few samples; a few forward passes are run.
    """
    from hpcmpq.models.graph_chain import find_graph_chain

    reasons = []
    is_transformer = hasattr(model, "config") and hasattr(model, "base_model_prefix")
    if not is_transformer:
        chain, reason = find_graph_chain(model, inputs)
        if chain is not None and reproduces(chain, model, inputs):
            return chain
        reasons.append(reason or "the traced graph gives other outputs")
    for name, container in _containers(model):
        chain, reason = list_chain(model, container, inputs)
        if chain is not None and reproduces(chain, model, inputs):
            return chain
        reasons.append(f"{name}: {reason or 'cutting it there gives other outputs'}")
    log.info(
        "the model is not a chain of blocks (%s); running one whole forward pass per option",
        "; ".join(reasons[:3]) or "it has no list of modules",
    )
    return None


def list_chain(model: nn.Module, container: nn.Module, inputs: Inputs) -> tuple[Chain | None, str]:
    """The chain of the modules in a list, unverified; or None and why not."""
    blocks = tuple(container.children())
    seen = _watch(model, blocks, inputs)
    if [k for k, *_ in seen] != list(range(len(blocks))):
        return None, "its modules do not run once each in order"
    calls: list[Call] = []
    outputs: list[Tensor] = []
    for _, args, kwargs, output in seen:
        hidden = _first(output)
        if not isinstance(hidden, Tensor) or (
            isinstance(output, tuple) and any(o is not None for o in output[1:])
        ):
            return None, "a module returns more than one tensor"
        key = 0 if args and isinstance(args[0], Tensor) else "hidden_states"
        given = args[0] if key == 0 else kwargs.get(key)
        if outputs and (
            given is None or given.data_ptr() != outputs[-1].data_ptr() or given.shape != outputs[-1].shape
        ):
            return None, "something happens between its modules"
        calls.append(_call(args, kwargs, key))
        outputs.append(hidden)
    width = len(seen[0][3]) if isinstance(seen[0][3], tuple) else None
    chain = Chain(
        blocks,
        enter=lambda inputs: _enter(model, blocks, calls[0].key, width, inputs),
        leave=lambda inputs, hidden: _leave(model, blocks, calls[0].key, width, inputs, hidden),
    )
    try:
        _, alone = chain.enter(inputs)
    except Exception as error:  # any failure only means: not this list
        return None, f"its prologue does not run alone ({type(error).__name__})"
    if not same_values([(c.args, c.kwargs) for c in calls], [(c.args, c.kwargs) for c in alone]):
        return None, "its modules are given something that depends on the hidden state"
    return chain, ""


def reproduces(chain: Chain, model: nn.Module, inputs: Inputs) -> bool:
    """Whether prologue, blocks and epilogue give the model's outputs to rounding."""
    z_NTV = forward(model, inputs)
    hidden, calls = chain.enter(inputs)
    for k, call in enumerate(calls):
        hidden = chain.run(k, hidden, call)
    again_NTV = chain.leave(inputs, hidden)
    if again_NTV.shape != z_NTV.shape:
        return False
    limit = 64 * torch.finfo(z_NTV.dtype).eps * float(z_NTV.abs().max())
    return bool((again_NTV - z_NTV).abs().max() <= limit)


def same_values(first: Any, second: Any) -> bool:
    """Whether two nested structures hold the same tensors, bit for bit, and equal plain values."""
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        both = isinstance(first, Tensor) and isinstance(second, Tensor)
        return both and (first is second or (first.shape == second.shape and torch.equal(first, second)))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_values(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list) and isinstance(second, tuple | list):
        return len(first) == len(second) and all(map(same_values, first, second))
    return first is second or type(first) is type(second) and bool(first == second)


def _containers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Lists of at least two modules with parameters, most parameters first."""
    found = [
        (sum(p.numel() for p in module.parameters()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    return [(name, module) for size, name, module in sorted(found, key=lambda f: -f[0]) if size]


def _watch(
    model: nn.Module, blocks: tuple[nn.Module, ...], inputs: Inputs
) -> list[tuple[int, tuple, dict, Any]]:
    """(block, args, kwargs, output) of every call of a block in one forward pass."""
    seen: list[tuple[int, tuple, dict, Any]] = []

    def hook(k: int) -> Callable[..., None]:
        return lambda _, args, kwargs, output: seen.append((k, args, kwargs, output))

    handles = [block.register_forward_hook(hook(k), with_kwargs=True) for k, block in enumerate(blocks)]
    try:
        forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _enter(
    model: nn.Module, blocks: tuple[nn.Module, ...], key: int | str, width: int | None, inputs: Inputs
) -> tuple[Tensor, tuple[Call, ...]]:
    calls: list[Call] = []
    hiddens: list[Tensor] = []

    def identity(*args: Any, **kwargs: Any) -> Any:
        hiddens.append(args[key] if isinstance(key, int) else kwargs[key])
        calls.append(_call(args, kwargs, key))
        if len(calls) == len(blocks):
            raise _LastBlock
        return _as_output(hiddens[0], width)

    with _replaced(blocks, dict.fromkeys(range(len(blocks)), identity)):
        try:
            forward(model, inputs)
        except _LastBlock:
            return hiddens[0], tuple(calls)
    raise AssertionError("the blocks did not all run")


def _leave(
    model: nn.Module,
    blocks: tuple[nn.Module, ...],
    key: int | str,
    width: int | None,
    inputs: Inputs,
    hidden: Tensor,
) -> Tensor:
    def identity(*args: Any, **kwargs: Any) -> Any:
        return _as_output(args[key] if isinstance(key, int) else kwargs[key], width)

    stubs = dict.fromkeys(range(len(blocks) - 1), identity)
    stubs[len(blocks) - 1] = lambda *args, **kwargs: _as_output(hidden, width)
    with _replaced(blocks, stubs):
        return forward(model, inputs)


@contextmanager
def _replaced(blocks: tuple[nn.Module, ...], forwards: dict[int, Callable[..., Any]]) -> Iterator[None]:
    """Other forward methods on some blocks; their attributes, which the model may read, stay."""
    before = {k: blocks[k].__dict__.get("forward") for k in forwards}
    try:
        for k, function in forwards.items():
            blocks[k].forward = function  # type: ignore[method-assign]
        yield
    finally:
        for k, original in before.items():
            if original is None:
                blocks[k].__dict__.pop("forward", None)
            else:
                blocks[k].forward = original  # type: ignore[method-assign]


def _call(args: tuple, kwargs: dict[str, Any], key: int | str) -> Call:
    if isinstance(key, str):
        return Call(args, {name: value for name, value in kwargs.items() if name != key}, key)
    return Call((*args[:key], None, *args[key + 1 :]), kwargs, key)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _as_output(hidden: Tensor, width: int | None) -> Any:
    return hidden if width is None else (hidden, *[None] * (width - 1))


class _LastBlock(Exception):
    """Ends the prologue's forward pass."""
