"""Models that are a chain: prologue → block 0 → … → block L−1 → epilogue, found by watching one forward pass.

Nothing here knows an architecture. Blocks are the modules of a list (`list_chain`) or pieces of a traced graph
(`graph_chain`); whether they are a chain is seen by running them.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.models.blocks import block_lists
from hpcmpq.models.outputs import forward
from hpcmpq.models.weights import swapped
from hpcmpq.space import Group

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
            return first_output(self.blocks[k](*args, **kwargs))
        return first_output(torch.func.functional_call(self.blocks[k], tensors, args, kwargs))


@torch.no_grad()
def find_chain(model: nn.Module, inputs: Inputs, groups: Sequence[Group] = ()) -> Chain | None:
    """The chain that a model is, or None, with the reason logged.

    A candidate only counts if prologue, blocks and epilogue together give the model's outputs to rounding, and if the
    weights of `groups` outside its blocks change no more than the first hidden state.

    Args:
        model: In eval mode.
        inputs: Of one or a few samples; a few forward passes are run.
        groups: Whose weights will change.
    """
    from hpcmpq.models.graph_chain import find_graph_chain
    from hpcmpq.models.list_chain import list_chain

    reasons = []
    is_transformer = hasattr(model, "config") and hasattr(model, "base_model_prefix")
    if not is_transformer:
        chain, reason = find_graph_chain(model, inputs)
        if chain is not None and reproduces(chain, model, inputs):
            return chain  # whose blocks are given nothing else
        reasons.append(reason or "the traced graph gives other outputs")
    for name, container in block_lists(model):
        chain, reason = list_chain(model, container, inputs)
        if chain is not None and reproduces(chain, model, inputs):
            reaching = _reaching_all_blocks(chain, model, inputs, groups)
            if reaching is None:
                return chain
            reason = f"all its modules are given what {reaching} changes"
        reasons.append(f"{name}: {reason or 'cutting it there gives other outputs'}")
    log.info(
        "the model is not a chain of blocks (%s); running one whole forward pass per option",
        "; ".join(reasons[:3]) or "it has no list of modules",
    )
    return None


def reproduces(chain: Chain, model: nn.Module, inputs: Inputs) -> bool:
    """Whether prologue, blocks and epilogue give the model's outputs to rounding."""
    z_NTV = forward(model, inputs)
    try:
        hidden, calls = chain.enter(inputs)
        for k, call in enumerate(calls):
            hidden = chain.run(k, hidden, call)
        again_NTV = chain.leave(inputs, hidden)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the model's own code, called as it does not expect: not a chain
        log.debug("a candidate for a chain failed: %s", error)
        return False
    if again_NTV.shape != z_NTV.shape:
        return False
    limit = 64 * torch.finfo(z_NTV.dtype).eps * float(z_NTV.abs().max())
    return bool((again_NTV - z_NTV).abs().max() <= limit)


def _reaching_all_blocks(
    chain: Chain, model: nn.Module, inputs: Inputs, groups: Sequence[Group]
) -> str | None:
    """A group whose weights outside the blocks change what all of them are given, as an encoder's do for a decoder."""
    inside = {id(parameter) for block in chain.blocks for parameter in block.parameters()}
    _, calls = chain.enter(inputs)
    for group in groups:
        weights = {member.parameter: model.get_parameter(member.parameter) for member in group.members}
        halved = {name: weight / 2 for name, weight in weights.items() if id(weight) not in inside}
        if not halved:
            continue
        with swapped(model, halved):
            _, own_calls = chain.enter(inputs)
        if not same_values([(c.args, c.kwargs) for c in calls], [(c.args, c.kwargs) for c in own_calls]):
            return group.name
    return None


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
