"""Tensors of a model that checkpoints hold in several, such as all experts of a layer: a matrix of each.

Where transformers takes them apart when it saves them, this does as it does. Experts that it saves in one tensor
(GPT-OSS, Llama 4, Granite) are one by one in packed checkpoints, under the names that engines look for:
``EXPERTS.3.gate_proj``, and ``w1``, ``w3``, ``w2`` inside a ``block_sparse_moe``. Source: `llmcompressor/modeling/moe`
of llm-compressor, and `load_weights` of vLLM's llama4.py and granitemoe.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.joined_weights import conversions
from hpcmpq.models.layer_kinds import are_experts
from hpcmpq.models.stored_weights import names_in_model
from hpcmpq.space import Member

PROJECTIONS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
"""{parameter of fused experts: the layers of each expert that it holds}."""

_IN_BLOCK_SPARSE = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def num_stored_tensors(model: nn.Module, parameter: str, converters: Sequence[Any]) -> int:
    """Tensors in which packed checkpoints hold the experts of a layer that the model keeps in one; 1 if one does.

    Args:
        model: That the parameter is one of.
        parameter: Its name.
        converters: From `hpcmpq.models.joined_weights.conversions` of the model.
    """
    weight = model.get_parameter(parameter)
    for converter in converters:
        stacked = type(converter.operations[0]).__name__ == "MergeModulelist"
        if stacked and any(target in parameter for target in converter.target_patterns):
            return len(weight) * len(converter.source_patterns)
    path, _, own = parameter.rpartition(".")
    if not are_experts(model.get_submodule(path)):
        return 1
    return len(weight) * len(PROJECTIONS.get(own, ())) or 1


def stored_rows(model: nn.Module, member: Member) -> dict[str, slice]:
    """{name in saved files: the rows of the weight's matrix that it holds} of all experts of a layer.

    Raises:
        UserError: If a saved tensor holds other rows than some that follow one another.
    """
    saved = _saved_rows(model, member)
    if len(saved) == 1 and member.tensors > 1:
        return _one_by_one(model, member, next(iter(saved)))
    found = {}
    for name, rows in saved.items():
        first, number = int(rows.flatten()[0]), rows.numel()
        if not torch.equal(rows.flatten(), torch.arange(first, first + number)):
            raise UserError(
                f"transformers saves {member.parameter} with its rows in another order, which no packed checkpoint "
                "follows; exclude it or export fake_quantized"
            )
        found[name] = slice(first, first + number)
    return found


def saved_whole(model: nn.Module, member: Member) -> bool:
    """Whether transformers saves, and looks for, all experts of a layer in the tensor that its model has."""
    return member.tensors > 1 and len(_saved_rows(model, member)) == 1


def _saved_rows(model: nn.Module, member: Member) -> dict[str, Tensor]:
    """{name in files that transformers saves: numbers of the rows of the weight's matrix that it holds}."""
    num_experts = len(model.get_parameter(member.parameter))
    numbers = torch.arange(member.num_rows).reshape(num_experts, -1, 1)
    return taken_apart(model, member.parameter, numbers)


def taken_apart(model: nn.Module, parameter: str, value: Tensor) -> dict[str, Tensor]:
    """{name in saved files: tensor} of a value of a parameter, as transformers saves it."""
    if not any(conversions(model)):
        return {parameter: value}
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, {parameter: value}))


def unsaved(model: nn.Module, members: Iterable[Member]) -> list[str]:
    """Weights that are not among the tensors that transformers saves, neither whole nor by rows.

    Raises:
        UserError: As `stored_rows`.
    """
    saved = saved_names(model)
    parts = {m.parameter: {m.parameter} if m.tensors == 1 else set(stored_rows(model, m)) for m in members}
    renamed = {stored: name for name, stored in names_in_model(model, saved).items()}
    reached = {renamed.get(name, name) for name in saved}
    return [name for name, own in parts.items() if name not in reached and not own <= saved]


def saved_names(model: nn.Module) -> set[str]:
    """Names of the tensors that transformers saves of a model, which needs no values; those that are tied too."""
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    if not any(conversions(model)):
        return set(shapes)
    from transformers.core_model_loading import revert_weight_conversion

    return set(revert_weight_conversion(model, shapes))


def _one_by_one(model: nn.Module, member: Member, saved: str) -> dict[str, slice]:
    """The same of experts that transformers saves in one tensor, called `saved`."""
    path, _, own = member.parameter.rpartition(".")
    stem = saved.removesuffix(f".{own}") if saved.endswith(f".{own}") else path
    layers = PROJECTIONS[own]
    if ".block_sparse_moe." in f".{stem}.":
        layers = tuple(_IN_BLOCK_SPARSE[layer] for layer in layers)
    by_turns = getattr(model.get_submodule(path), "is_concatenated", True) is False
    num_experts = len(model.get_parameter(member.parameter))
    height = member.num_rows // num_experts
    found = {}
    for expert in range(num_experts):
        first = expert * height
        for place, layer in enumerate(layers):
            if by_turns:
                rows = slice(first + place, first + height, len(layers))
            else:
                part = height // len(layers)
                rows = slice(first + place * part, first + (place + 1) * part)
            found[f"{stem}.{expert}.{layer}.weight"] = rows
    return found
