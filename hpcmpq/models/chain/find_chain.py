"""Whether a model is a chain of blocks: candidates from its graph and from its lists, each tried."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from hpcmpq.models.blocks import block_lists
from hpcmpq.models.chain.chain import Chain, Inputs, same_values
from hpcmpq.models.outputs import forward
from hpcmpq.models.weights import swapped
from hpcmpq.space import Group

log = logging.getLogger(__name__)


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
    from hpcmpq.models.chain.list_chain import list_chain

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
