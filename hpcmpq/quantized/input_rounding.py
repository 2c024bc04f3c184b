"""Layers and products whose inputs are rounded while a model runs.

    with rounding({layer: Rounded(("int8",)), ...}):   # inside, these modules see rounded inputs
        forward(model, inputs)

Where one pass runs several options under `vmap`, `Rounded.index` says for each which of the formats is its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.layer_kinds import first_input, operand_axes
from hpcmpq.models.outputs import forward
from hpcmpq.quantized.padding import padding_masks, position_axes, without_padding
from hpcmpq.quantizers.activations import round_activations


@dataclass(frozen=True)
class Rounded:
    """What the inputs of a module are rounded to.

    Attributes:
        formats: Number formats of activations; None leaves the inputs alone.
        index: Which of them, int64 [], batched under `vmap`; or None where there is only one.
        maxima: The static range's end of each rounded input, or None for dynamic scales.
        dynamic: Whether scales are dynamic but where a format needs the range's end (`Format.static_inputs`).
    """

    formats: tuple[str | None, ...]
    index: Tensor | None = None
    maxima: tuple[float, ...] | None = None
    dynamic: bool = False


def round_operands(
    module: nn.Module,
    operands: Sequence[Tensor],
    format_name: str,
    maxima: tuple[float, ...] | None,
    dynamic: bool = False,
) -> tuple[Tensor, ...]:
    """The rounded inputs of a module, see `operand_axes`; other arguments as in `Rounded`."""
    if dynamic and not FORMATS[format_name].static_inputs:
        maxima = None
    axes = operand_axes(module)
    return tuple(
        round_activations(x, FORMATS[format_name], along, None if maxima is None else maxima[place])
        for place, (x, along) in enumerate(zip(operands, axes, strict=False))
    )


@contextmanager
def rounding(places: Mapping[nn.Module, Rounded]) -> Iterator[None]:
    """Inside, the inputs of these modules are rounded before they run."""
    handles = start_rounding(places)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def start_rounding(places: Mapping[nn.Module, Rounded]) -> list[RemovableHandle]:
    """Round the inputs of these modules before they run, until the handles are removed."""
    return [
        module.register_forward_pre_hook(partial(_round, rounded=rounded))
        for module, rounded in places.items()
        if operand_axes(module)
    ]


def _round(module: nn.Module, args: tuple[Tensor, ...], rounded: Rounded) -> tuple[Tensor, ...]:
    count = len(operand_axes(module))
    if len(args) < count:
        raise UserError(
            f"a {type(module).__name__} is called with keywords only, so its inputs cannot be rounded; "
            "exclude it or drop the formats that round activations"
        )
    outputs = args[:count]
    for place, name in enumerate(rounded.formats):
        if name is not None:
            values = round_operands(module, args[:count], name, rounded.maxima, rounded.dynamic)
            if rounded.index is None:
                outputs = values
            else:
                pairs = zip(values, outputs, strict=True)
                outputs = tuple(torch.where(rounded.index == place, new, old) for new, old in pairs)
    return (*outputs, *args[count:])


@torch.no_grad()
def record_maxima(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, tuple[float, ...]]:
    """{name: largest absolute value of each rounded input} of modules over some batches, padding aside.

    A maximum does not depend on the order or the batches of the samples.

    Args:
        model: Runs once for every batch.
        modules: By name; embeddings are left out.
        batches: Inputs of the model.
    """
    maxima: dict[str, list[float]] = {}
    masks: tuple[Tensor, ...] = ()

    def watch(module: nn.Module, args: tuple[Tensor, ...], name: str) -> None:
        first_input(name, args)
        count = len(operand_axes(module))
        operands = zip(args[:count], position_axes(name, count), strict=True)
        real = [without_padding(x, masks, axis) for x, axis in operands]
        largest = [float(x.abs().max()) if x.numel() else 0.0 for x in real]
        maxima[name] = [max(pair) for pair in zip(maxima.get(name, largest), largest, strict=True)]

    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: watch(m, args, name))
        for name, module in modules.items()
        if operand_axes(module)
    ]
    try:
        for inputs in batches:
            masks = padding_masks(inputs)
            forward(model, dict(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(values) for name, values in maxima.items()}
