"""What blocks are given waits on the host, once for batches that are given the same."""

import pytest
import torch

from hpcmpq.models.chain.chain import Call
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.data.samples import Samples
from hpcmpq.planning.seen_pass import see
from hpcmpq.rounding.pieces import ModelStates
from hpcmpq.rounding.waiting_calls import WaitingCalls
from tests.models_of_many_kinds import make


def tensors_of(calls: list[tuple[Call, ...]]) -> list[torch.Tensor]:
    """Each once."""
    leaves = [
        leaf for batch in calls for call in batch for leaf in torch.utils._pytree.tree_leaves(call.kwargs)
    ]
    found = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return list(found.values())


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_batches_share_what_has_the_same_values(padded):
    model, _ = make("llama", torch.float32)
    tokens = torch.arange(48).view(6, 8)
    inputs = {"input_ids": tokens}
    if padded:
        inputs["attention_mask"] = (torch.arange(8) < torch.arange(3, 9)[:, None]).long()
    batches = list(Samples(inputs).passes(2))
    chain = find_chain(model, batches[0].inputs)
    entered = [chain.enter(batch.inputs) for batch in batches]
    waiting = WaitingCalls()
    for _, calls in entered:
        waiting.keep(len(waiting._batches), calls)
    kept = [[waiting.call(i, k) for k in range(len(chain.blocks))] for i in range(3)]
    one, all_kept = tensors_of([entered[0][1]]), tensors_of(kept)
    masks = [tensor for tensor in one if padded and tensor.ndim == 4]
    assert len(masks) == padded and len(all_kept) == len(one) + 2 * len(masks)
    for (hidden, calls), own in zip(entered, kept, strict=True):
        for k, (call, again) in enumerate(zip(calls, own, strict=True)):
            assert torch.equal(chain.run(k, hidden, call), chain.run(k, hidden, again))
    seen = see(model, chain, (), batches[0].inputs)
    assert seen.given == sum(tensor.nbytes for tensor in one) > 0 and seen.given_apart == padded
    states = ModelStates(model, batches, tracked=True)
    before, *_ = states.pieces(())
    for i in range(3):
        before.advance(i, before.quantized(i, {}))
    own = tensors_of([[states._calls.call(i, k) for k in range(len(chain.blocks))] for i in range(3)])
    assert sum(tensor.nbytes for tensor in own) == sum(tensor.nbytes for tensor in all_kept)
