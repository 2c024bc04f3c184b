"""Uses of the searched weights in a forward pass, each a map y = W(x) that is linear in W and in x; and products.

Derivatives in a weight's error δ need the gradient of y and the input x alone, sample by sample, and no
gradient of the weight's own size: ⟨∂L/∂W, δ⟩ = ⟨∂L/∂y, δ(x)⟩. To see ∂L/∂y, a zero *tap* is added to every
output. Weights that are used in other ways than by calling their layer (in fused attention modules, say) keep
their ordinary gradient; which they are is found by comparing both forms for random cotangents.

Axis letters: N samples, K options of one group.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp

from hpcmpq.errors import UserError
from hpcmpq.models.outputs import forward
from hpcmpq.models.products import MatrixProduct
from hpcmpq.models.samples import Samples
from hpcmpq.sensitivity import Subject

Tensors = dict[str, Tensor]

AGREEMENT = 1e-3
"""Relative difference of both forms of a weight's gradient up to which it is seen through its layers."""


@dataclass(frozen=True)
class Use:
    """One call of a layer that holds a searched weight, or of a product of activations.

    Attributes:
        group: Index of the weight's group.
        parameter: The weight's name, or the product's.
        module: The layer.
        turn: Which of the layer's calls in one forward pass.
        shapes: Of a product, the shapes of its factors without the first axis. They count as one input, side by side.
    """

    group: int
    parameter: str
    module: nn.Module
    turn: int
    shapes: tuple[torch.Size, ...] = ()


@dataclass(frozen=True)
class Layers:
    """All uses of the searched weights.

    Attributes:
        uses: In order of execution.
        direct: {name: group} of weights that are not used through their layers alone.
        per_sample: Whether the first axis of every layer's input is the samples.
    """

    uses: tuple[Use, ...]
    direct: dict[str, int]
    per_sample: bool

    def uses_of(self, group: int) -> list[int]:
        """Indices of the uses of a group's weights."""
        return [index for index, use in enumerate(self.uses) if use.group == group]

    def direct_of(self, group: int) -> list[str]:
        """Names of a group's direct weights."""
        return [name for name, index in self.direct.items() if index == group]

    def sharing_input(self, groups: range, inputs: list[Tensor]) -> list[range]:
        """Runs of neighbouring groups that are each used once, on the same input: their options share a pass."""
        runs: list[range] = []
        before = None
        for group in groups:
            uses = self.uses_of(group)
            alone = len(uses) == 1 and not self.direct_of(group)
            source = inputs[uses[0]].data_ptr() if alone else None
            if source is not None and source == before:
                runs[-1] = range(runs[-1].start, group + 1)
            else:
                runs.append(range(group, group + 1))
            before = source
        return runs

    def passes(self, subject: Subject, samples: Samples) -> Iterator[tuple[int, Samples]]:
        """(place of the first, samples) of each pass: one by one where samples cannot be told apart."""
        step = subject.samples_per_pass if self.per_sample and not self.direct else 1
        for start in range(0, len(samples), step):
            yield start, samples[start : start + step]


def find_layers(subject: Subject, samples: Samples) -> Layers:
    """The uses in a forward pass of the first two samples, checked against ordinary gradients.

    Raises:
        UserError: If a weight is used past its layer, so that the layer's inputs cannot be rounded as asked.
    """
    few = samples[:2]
    group_of = {
        id(tensor): (index, name)
        for index, group in enumerate(subject.space.groups)
        for name, tensor in subject.variants.originals(group).items()
    }
    holders = [
        module
        for module in subject.model.modules()
        if _is_layer(module) and id(module._parameters.get("weight")) in group_of
    ]
    products = {
        subject.model.get_submodule(product.module): (index, product.module)
        for index, group in enumerate(subject.space.groups)
        for product in group.products
    }
    turns: dict[nn.Module, int] = {}
    uses: list[Use] = []

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        turn = turns[module] = turns.get(module, -1) + 1
        if module in products:
            uses.append(Use(*products[module], module, turn, tuple(x.shape[1:] for x in args)))
        else:
            uses.append(Use(*group_of[id(module.weight)], module, turn))

    handles = [module.register_forward_hook(record) for module in (*holders, *products)]
    try:
        with torch.no_grad():
            forward(subject.model, few.inputs)
    finally:
        for handle in handles:
            handle.remove()
    names = {name: index for index, name in group_of.values()}
    every = Layers(tuple(uses), names, per_sample=True)
    output, inputs, grads, direct_grads = random_gradient(subject, every, few)
    seen = {name: torch.zeros_like(grad) for name, grad in direct_grads.items()}
    for use, x, grad_y in zip(every.uses, inputs, grads, strict=True):
        if use.parameter in seen:
            seen[use.parameter] += pull(use, x, grad_y)
    direct = {
        name: names[name]
        for name, grad in direct_grads.items()
        if (grad - seen[name]).norm() > AGREEMENT * grad.norm()
    }
    rounded = [name for name, index in direct.items() if subject.variants.activations.rounds(index)]
    if rounded:
        raise UserError(
            f"{rounded[0]} is used in other ways than by calling its layer, so the layer's inputs cannot be rounded; "
            "exclude it, or use formats that round weights alone"
        )
    kept = tuple(use for use in uses if use.parameter not in direct)
    per_sample = all(
        len(x) == len(output) for use, x in zip(uses, inputs, strict=True) if use.parameter not in direct
    )
    return Layers(kept, direct, per_sample)


def random_gradient(
    subject: Subject, layers: Layers, batch: Samples
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensors]:
    """z, inputs, and the gradients in taps and direct weights of v·z for a fixed random v."""
    with torch.enable_grad():
        z_NTV, inputs, taps, weights = run_with_taps(subject, layers, batch)
        generator = torch.Generator().manual_seed(0)
        v_NTV = torch.randn(z_NTV.shape, generator=generator).to(z_NTV)
        grads = torch.autograd.grad(z_NTV, [*taps, *weights.values()], v_NTV)
    return (
        z_NTV.detach(),
        inputs,
        list(grads[: len(taps)]),
        dict(zip(weights, grads[len(taps) :], strict=True)),
    )


def run_with_taps(
    subject: Subject, layers: Layers, batch: Samples
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensors]:
    """z, the detached input of every use, and the taps and direct weights as leaves of z's graph."""
    inputs: dict[int, Tensor] = {}
    taps: dict[int, Tensor] = {}
    weights = {
        name: subject.model.get_parameter(name).detach().clone().requires_grad_(True)
        for name in layers.direct
    }
    with tapped(layers, inputs, taps, make_leaves=True):
        z_NTV = run(subject, batch, weights)
    order = range(len(layers.uses))
    return z_NTV, [inputs[i].detach() for i in order], [taps[i] for i in order], weights


def run(subject: Subject, batch: Samples, weights: Mapping[str, Tensor]) -> Tensor:
    """z with some weights replaced, differentiable in them; tied weights follow."""
    replaced = {f"model.{name}": tensor for name, tensor in weights.items()}
    return functional_call(_Outputs(subject.model), replaced, (batch.inputs,))


@contextmanager
def tapped(
    layers: Layers, inputs: dict[int, Tensor], taps: dict[int, Tensor], *, make_leaves: bool = False
) -> Iterator[None]:
    """In one forward pass, put the input of use i into inputs[i] and add taps[i] to its output.

    Args:
        layers: The uses.
        inputs: Filled in.
        taps: By use; a use without one keeps its output.
        make_leaves: Fill `taps` with zeros that require gradients first.
    """
    place = {(use.module, use.turn): index for index, use in enumerate(layers.uses)}
    turns: dict[nn.Module, int] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        index = place[module, turns.get(module, 0)]
        turns[module] = turns.get(module, 0) + 1
        is_product = isinstance(module, MatrixProduct)
        inputs[index] = torch.cat([x.flatten(1) for x in args], 1) if is_product else args[0]
        if make_leaves:
            taps[index] = torch.zeros_like(output, requires_grad=True)
        return output + taps[index] if index in taps else output

    handles = [module.register_forward_hook(hook) for module in {use.module: None for use in layers.uses}]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def apply(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """W(x) of a layer without its bias, for any weight of the layer's shape."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module._conv_forward(x, weight, None)
    return x @ weight  # transformers' Conv1D


def pull(use: Use, x: Tensor, grad_y: Tensor) -> Tensor:
    """The gradient in a use's weight, of the weight's shape, from the gradient in its output."""
    weight: Tensor = use.module.weight  # type: ignore[assignment]
    return vjp(lambda w: apply(use.module, w, x), weight.detach())[1](grad_y)[0]


class _Outputs(nn.Module):
    """A model whose forward pass takes named inputs and returns z, for `functional_call`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return forward(self.model, inputs)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d) or is_linear(module)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer multiplies the last axis of its input by a matrix."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
