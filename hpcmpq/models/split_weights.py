"""Tensors of a model that transformers takes apart when it saves them, such as all experts of a layer: one of each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.space import Member


def num_stored_tensors(model: nn.Module, parameter: str, converters: Sequence[Any]) -> int:
    """Tensors in which transformers saves the experts of a layer that the model keeps in one; 1 if it saves it so.

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
    return 1


def stored_rows(model: nn.Module, member: Member) -> dict[str, tuple[int, int]]:
    """{name in saved files: start and stop of the rows of the weight's matrix that it holds} of a stack of experts.

    What transformers does when it saves is done here with the rows' numbers.

    Raises:
        UserError: If a saved tensor holds other rows than some that follow one another.
    """
    from transformers.core_model_loading import revert_weight_conversion

    num_experts = len(model.get_parameter(member.parameter))
    numbers = torch.arange(member.num_rows).reshape(num_experts, -1, 1)
    saved = revert_weight_conversion(model, {member.parameter: numbers})
    found = {}
    for name, rows in saved.items():
        first, number = int(rows.flatten()[0]), rows.numel()
        if not torch.equal(rows.flatten(), torch.arange(first, first + number)):
            raise UserError(
                f"transformers saves {member.parameter} with its rows in another order, which no packed checkpoint "
                "follows; exclude it or export fake_quantized"
            )
        found[name] = first, first + number
    return found
