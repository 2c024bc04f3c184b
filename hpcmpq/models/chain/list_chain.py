"""Chains in models with a list of blocks, such as transformers: the list's modules, called as the model calls them.

A list of modules is a chain of blocks if each runs once, in order, the first output of one is the hidden state of
the next, and everything else that a block is given (masks, rotary embeddings) stays the same when the blocks are
replaced by the identity. What else a block returns, such as attention weights, is not handed on. The prologue is the
model's forward cut off at the last block; the epilogue is the same forward with the blocks handing on a given hidden
state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hpcmpq.models.chain.chain import Call, Chain, first_output, same_values
from hpcmpq.models.outputs import Inputs, forward


@dataclass(frozen=True)
class ListPass:
    """One forward pass of a model with a list of modules.

    Attributes:
        blocks: The modules.
        seen: (block, args, kwargs, output) of every call of one.
        z_NTV: The model's outputs.
    """

    blocks: tuple[nn.Module, ...]
    seen: list[tuple[int, tuple, dict, Any]]
    z_NTV: Tensor


def list_chain(model: nn.Module, watched: ListPass, inputs: Inputs) -> tuple[Chain | None, str]:
    """The chain of the modules in a list that were watched on some inputs, unverified; or None and why not."""
    blocks, seen = watched.blocks, watched.seen
    if [k for k, *_ in seen] != list(range(len(blocks))):
        return None, "its modules do not run once each in order"
    calls: list[Call] = []
    outputs: list[Tensor] = []
    for _, args, kwargs, output in seen:
        hidden = first_output(output)
        if not isinstance(hidden, Tensor):
            return None, "a module returns something other than a tensor first"
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


def watch(model: nn.Module, container: nn.Module, inputs: Inputs) -> tuple[ListPass, str]:
    """A forward pass with the modules in a list watched; nothing is wrong with it."""
    blocks = tuple(container.children())
    seen: list[tuple[int, tuple, dict, Any]] = []

    def hook(k: int) -> Callable[..., None]:
        return lambda _, args, kwargs, output: seen.append((k, args, kwargs, output))

    handles = [block.register_forward_hook(hook(k), with_kwargs=True) for k, block in enumerate(blocks)]
    try:
        z_NTV = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return ListPass(blocks, seen, z_NTV), ""


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


def _as_output(hidden: Tensor, width: int | None) -> Any:
    return hidden if width is None else (hidden, *[None] * (width - 1))


class _LastBlock(Exception):
    """Ends the prologue's forward pass."""
