"""Models that are a chain: prologue → block 0 → … → block L−1 → epilogue, found by watching one forward pass.

Nothing here knows an architecture. Blocks are the modules of a list (`list_chain`) or pieces of a traced graph
(`graph_chain`); whether they are a chain is seen by running them.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.models.outputs import Inputs
from hpcmpq.models.weights import called_with

log = logging.getLogger(__name__)


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
            return first_output(self.blocks[k](*args, **kwargs))
        return first_output(called_with(self.blocks[k], tensors, args, kwargs))


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


def first_output(output: Any) -> Any:
    """What a block hands on: the first of several outputs."""
    return output[0] if isinstance(output, tuple) else output
