"""How much of each weight a token reads: of experts those that are chosen, of a table that is looked up one row."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hpcmpq.models.outputs import Inputs, tried_forward
from hpcmpq.models.routers import TopkSizes, mixtures

_CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k",
    "top_k_experts", "num_selected_experts",
)  # fmt: skip
"""What configurations of transformers call the number of experts that a token is given to."""

_NESTED = ("text_config", "ffn_config")
"""Configurations inside a configuration where it may stand."""


def active_shares(model: nn.Module) -> dict[str, float]:
    """{parameter: share of its numbers that a token reads} of those of which it does not read all.

    Of E experts of which the model's configuration says that k are chosen, k / E, as if all were chosen equally often;
    of an embedding that is nothing else one row. Shared experts, routers and all other layers are read in full, and so
    are experts where no configuration says how many are chosen.
    """
    shares: dict[str, float] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            shares[f"{name}.weight".removeprefix(".")] = 1 / len(module.weight)
    num_chosen = chosen_experts(getattr(model, "config", None))
    if num_chosen is not None:
        for _, experts, num_experts in mixtures(model):
            inside = [name for name in parameters if name.startswith(f"{experts}.")]
            shares |= dict.fromkeys(inside, min(1.0, num_chosen / num_experts))
    read_whole = {id(parameter) for name, parameter in parameters.items() if name not in shares}
    return {name: share for name, share in shares.items() if id(parameters[name]) not in read_whole}


@torch.no_grad()
def chooses_experts(model: nn.Module, inputs: Inputs) -> bool:
    """Whether tokens are given to some of several experts: a configuration says how many, or `topk` chooses among them.

    Args:
        model: In eval mode.
        inputs: Of a sample, for a pass in which routers are watched where no configuration says it.
    """
    sizes = {size for _, _, size in mixtures(model)}
    if not sizes:
        return False
    if chosen_experts(getattr(model, "config", None)) is not None:
        return True
    device = next(model.parameters()).device
    with TopkSizes() as choices:
        tried_forward(model, {name: value.to(device) for name, value in inputs.items()})
    return not sizes.isdisjoint(choices.sizes)


def num_experts(model: nn.Module) -> int:
    """Experts of a layer, where all layers that have some have as many; otherwise 0."""
    sizes = {size for _, _, size in mixtures(model)}
    return sizes.pop() if len(sizes) == 1 else 0


def chosen_experts(config: Any) -> int | None:
    """How many experts each token is given to, as a configuration of transformers says; None if it does not."""
    for name in _CHOSEN:
        for values in _configurations(config):
            found = getattr(values, name, None)
            if isinstance(found, list | tuple) and found:
                found = max(found)  # of each layer
            if isinstance(found, int):
                return found
    return None


def _configurations(config: Any) -> Iterator[Any]:
    if config is not None:
        yield config
        for name in _NESTED:
            yield from _configurations(getattr(config, name, None))
