"""Whether a model is a chain of blocks: candidates from its graph and from its lists, each tried."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hpcmpq.errors import raise_if_no_room
from hpcmpq.models.blocks import block_lists
from hpcmpq.models.chain.chain import Chain, same_values
from hpcmpq.models.outputs import Inputs, forward
from hpcmpq.models.weights import swapped
from hpcmpq.space import Group

log = logging.getLogger(__name__)

T = TypeVar("T")


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
    from hpcmpq.models.chain.graph_chain import find_graph_chain
    from hpcmpq.models.chain.list_chain import list_chain, watch

    reasons = []
    is_transformer = hasattr(model, "config") and hasattr(model, "base_model_prefix")
    if not is_transformer:
        chain, reason = _tried(find_graph_chain, model, inputs)
        if chain is not None and reproduces(chain, inputs, forward(model, inputs)):
            return chain  # whose blocks are given nothing else
        reasons.append(reason or "the traced graph gives other outputs")
    for name, container in block_lists(model):
        watched, reason = _tried(watch, model, container, inputs)
        chain, reason = (None, reason) if watched is None else _tried(list_chain, model, watched, inputs)
        if chain is not None and watched is not None and reproduces(chain, inputs, watched.z_NTV):
            chain, reason = _tried(_independent, chain, model, inputs, groups)
            if chain is not None:
                return chain
        reasons.append(f"{name}: {reason or 'cutting it there gives other outputs'}")
    log.info(
        "the model is not a chain of blocks (%s); running one whole forward pass per option",
        "; ".join(reasons[:3]) or "it has no list of modules",
    )
    return None


def _tried(find: Callable[..., tuple[T | None, str]], *args: Any) -> tuple[T | None, str]:
    """What `find` finds; nothing where the model's own code raises, called as it does not expect."""
    try:
        return find(*args)
    except Exception as error:
        raise_if_no_room(error)
        return None, f"its code fails when it is taken apart ({type(error).__name__})"


def reproduces(chain: Chain, inputs: Inputs, z_NTV: Tensor) -> bool:
    """Whether prologue, blocks and epilogue give the model's outputs to rounding."""
    try:
        hidden, calls = chain.enter(inputs)
        for k, call in enumerate(calls):
            hidden = chain.run(k, hidden, call)
        again_NTV = chain.leave(inputs, hidden)
    except Exception as error:  # the model's own code, called as it does not expect: not a chain
        raise_if_no_room(error)
        log.debug("a candidate for a chain failed: %s", error)
        return False
    if again_NTV.shape != z_NTV.shape:
        return False
    limit = 64 * torch.finfo(z_NTV.dtype).eps * float(z_NTV.abs().max())
    return bool((again_NTV - z_NTV).abs().max() <= limit)


def _independent(
    chain: Chain, model: nn.Module, inputs: Inputs, groups: Sequence[Group]
) -> tuple[Chain | None, str]:
    """The chain, unless a group's weights outside change what all blocks are given, as an encoder's for a decoder."""
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
            return None, f"all its modules are given what {group.name} changes"
    return chain, ""
