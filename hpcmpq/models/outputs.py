"""One forward pass: how inputs reach a model and where its outputs z [N, T, V] are."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError, in_words
from hpcmpq.models.factories import describe

Inputs = dict[str, Tensor]
"""{argument name: tensor [N, ...]}."""


def forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's outputs z, [N, T, V].

    Logits of a language model as they are; logits of a classifier as [N, 1, V]; the last hidden state of a
    plain encoder. A tensor [N, V] of any module becomes [N, 1, V], and [N, V, ...] with more than three
    axes, such as class scores of pixels, becomes [N, positions, V].

    Args:
        model: Any module; a Hugging Face model or one whose output is a tensor or starts with one.
        inputs: By argument name; the key ``input`` is passed as the first argument. N is the first axis.

    Raises:
        UserError: If the model returns nothing that can be compared.
    """
    args, kwargs = call_arguments(model, inputs)
    return outputs_NTV(model(*args, **kwargs))


def tried_forward(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """As `forward`, of a model nobody has run yet.

    Raises:
        UserError: If its forward method fails on these inputs, or returns nothing that can be compared.
    """
    try:
        return forward(model, inputs)
    except Exception as error:  # the model's own code: it may fail in any way
        if isinstance(error, UserError) or in_words(error) is not error:
            raise
        if type(error).__module__ == "torch._subclasses.fake_tensor":
            raise UserError(
                f"the model's forward method asks for values ({describe(error)}), and only shapes are known where a "
                "model is streamed or planned dry; set model.stream: false, or plan without --dry"
            ) from error
        num_samples = len(next(iter(inputs.values())))
        what = "a sample" if num_samples == 1 else f"{num_samples} samples at once"
        given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        advice = "give what it needs, by argument name, from a factory of batches"
        if num_samples > 1:
            advice = "let it take batches, or set calibration.samples_per_pass: 1"
            if "padding token" in str(error) or "pad_token" in str(error):
                advice = "set pad_token_id in its config.json to the token that fills up short texts"
        raise UserError(
            f"the model's forward method fails on {what} ({describe(error)}); it was given {given}: {advice}"
        ) from error


class Logits(nn.Module):
    """A language model as a function of one tensor: token ids, int64 [N, T], to logits [N, T, V]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [N, T, V]."""
        return self.model(input_ids=input_ids, use_cache=False).logits


def call_arguments(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Positional and keyword arguments of a forward pass, for callers like `torch.func.functional_call`."""
    args = (inputs["input"],) if "input" in inputs else ()
    kwargs: dict[str, Any] = {key: value for key, value in inputs.items() if key != "input"}
    if _may_cache(model):
        kwargs["use_cache"] = False
    return args, kwargs


def _may_cache(model: nn.Module) -> bool:
    """Whether a forward pass takes `use_cache`, itself or for the language model inside."""
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters:
        return True
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    config = getattr(model, "config", None)
    return passes_on and any(hasattr(c, "use_cache") for c in (config, getattr(config, "text_config", None)))


def outputs_NTV(result: Any) -> Tensor:
    """The outputs z [N, T, V] in whatever a forward pass returned.

    Raises:
        UserError: If there is no tensor with at least two axes in it.
    """
    for name in ("logits", "last_hidden_state"):
        found = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
        if isinstance(found, Tensor):
            result = found
            break
    if isinstance(result, tuple | list) and result:
        result = result[0]
    if not isinstance(result, Tensor):
        raise UserError(
            f"the model returned {type(result).__name__}; wrap it so that forward returns one tensor"
        )
    if result.ndim < 2:
        raise UserError(
            f"the model returned a tensor of shape {list(result.shape)}; it must be [samples, outputs] or "
            "[samples, positions, outputs], not a loss"
        )
    if result.ndim == 2:
        return result.unsqueeze(1)
    if result.ndim == 3:
        return result
    return torch.movedim(result, 1, -1).flatten(1, -2)
