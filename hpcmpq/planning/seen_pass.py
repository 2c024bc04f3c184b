"""What one forward pass shows of a model: sizes of its outputs and states, and how much of it each option runs.

The pass may run on tensors that have shapes and no values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hpcmpq.models.active_weights import chooses_experts
from hpcmpq.models.blocks import largest_list
from hpcmpq.models.chain.chain import Chain
from hpcmpq.models.chain.places import Places, first_block, is_outside, places_of_groups
from hpcmpq.models.outputs import Inputs, forward
from hpcmpq.sensitivity.probes import STRIDE
from hpcmpq.sensitivity.projected_scores import LIKELY_OUTPUTS
from hpcmpq.sensitivity.sampled_positions import LossPositions, num_drawn, samples_positions
from hpcmpq.settings import Config
from hpcmpq.space import Group

SPAWNED_SHARE = 0.65
"""Share of a block that an option of its own weights runs, on average over the weights of a transformer block."""


@dataclass(frozen=True)
class SeenPass:
    """A pass over one batch.

    Attributes:
        z_NTV: The outputs.
        widest: Numbers in the widest output of any layer.
        state: Numbers in a hidden state.
        num_blocks: Of the chain of blocks, or None where the model is none.
        shares: Share of a pass that an option of each group runs.
        head_width: Inputs of the head before which options are projected, or None where all logits are made.
        repeats: Times that an option runs.
        given: Bytes of what blocks are given beside the hidden state, such as attention masks.
        given_apart: Whether passes differ in it, because samples are padded.
    """

    z_NTV: Tensor
    widest: int
    state: int
    num_blocks: int | None
    shares: tuple[float, ...]
    head_width: int | None = None
    repeats: int = 1
    given: int = 0
    given_apart: bool = False


def see(model: nn.Module, chain: Chain | None, groups: Sequence[Group], inputs: Inputs) -> SeenPass:
    """A pass of a model that was taken apart."""
    z_NTV, widest, state, given = _watch(model, inputs, () if chain is None else chain.blocks)
    if chain is None:
        return SeenPass(z_NTV, widest, state, None, (1.0,) * len(groups))
    shares = tuple(map(share_of_pass, places_of_groups(chain, model, groups)))
    apart = "attention_mask" in inputs
    return SeenPass(z_NTV, widest, state, len(chain.blocks), shares, given=given, given_apart=apart)


def see_shapes(
    model: nn.Module, groups: Sequence[Group], inputs: Inputs, config: Config, probes: int | None
) -> SeenPass:
    """A pass of a model that has shapes alone, as if its largest list of blocks were its chain."""
    blocks = largest_list(model)
    z_NTV, widest, state, given = _watch(model, inputs, blocks)
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    head, num_outputs = get_head(), z_NTV.shape[2]
    before = samples_positions(config.sensitivity.loss_positions, num_outputs, probes, config.objective)
    shares = tuple(1.0 if g.block is None else _share_from(g.block, len(blocks)) for g in groups)
    width = head.weight.shape[1] if before and head is not None else None
    repeats = 2 if chooses_experts(model, inputs) else 1
    apart = "attention_mask" in inputs
    return SeenPass(z_NTV, widest, state, len(blocks), shares, width, repeats, given, apart)


def output_elements(seen: SeenPass, probes: int | None, positions: LossPositions) -> tuple[int, int]:
    """Numbers for the outputs of the original, and of each option that is scored at once."""
    z_NTV, width = seen.z_NTV, seen.head_width
    num_samples, num_tokens, num_outputs = z_NTV.shape
    if width is None or probes is None:
        return 6 * z_NTV.numel(), z_NTV.numel()
    likely = min(LIKELY_OUTPUTS, num_outputs)
    known = num_samples * num_tokens * (1 + probes + likely) * width
    exact = num_samples * num_drawn(positions, num_tokens) * num_outputs
    table = num_samples * probes * (num_outputs + STRIDE * num_tokens)
    check = 8 * num_tokens * num_outputs  # of one sample, when the head is looked for
    return max(check, known + 2 * exact + table), num_samples * num_tokens * (2 * width + 4 * likely)


def share_of_pass(places: Places) -> float:
    """Share of a forward pass that an option of a group at these places of a chain runs."""
    return 1.0 if is_outside(places) else _share_from(first_block(places), len(places) - 1)


def _share_from(block: int, num_blocks: int) -> float:
    return (num_blocks - block - 1 + SPAWNED_SHARE) / num_blocks


def _watch(model: nn.Module, inputs: Inputs, blocks: Sequence[nn.Module]) -> tuple[Tensor, int, int, int]:
    """Outputs, elements of the widest output of a layer and of a hidden state, bytes of what blocks get beside it.

    Where the blocks are pieces of a graph, which the model itself does not call, a state counts as the widest and the
    bytes are none.
    """
    sizes = [0]
    state = [0]
    given: dict[int, Tensor] = {}

    def leaf(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    def block(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module is blocks[0]:
            state.append((output[0] if isinstance(output, tuple) else output).numel())
        beside = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        leaves = tree_leaves((args[1:], beside))
        given.update({id(value): value for value in leaves if isinstance(value, Tensor)})

    inner = [module for module in model.modules() if not any(True for _ in module.children())]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    handles = [module.register_forward_hook(leaf) for module in inner if module is not head]
    handles += [module.register_forward_hook(block, with_kwargs=True) for module in blocks]
    try:
        z_NTV = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return z_NTV, max(sizes), max(state) or max(sizes), sum(value.nbytes for value in given.values())
