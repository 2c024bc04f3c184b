"""Forward passes that show the input x of every use of a searched weight, and the gradient of its output y.

To see ∂L/∂y, a zero *tap* is added to every output. A layer that does not run in a pass, such as an expert without a
token, has an input of zeros there and no gradient. Weights that are used in other ways than by calling their
layer (in fused attention modules, say) keep their ordinary gradient; which they are is found by comparing both
forms for random cotangents.

Axis letters: N samples, T tokens, V outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError, raise_if_no_room
from hpcmpq.models.attention_products import MatrixProduct
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.factories import describe
from hpcmpq.models.layer_kinds import first_input, is_layer
from hpcmpq.models.outputs import forward
from hpcmpq.models.routers import experts_in_lists
from hpcmpq.models.weights import Tensors, called_with, holder_of
from hpcmpq.sensitivity.directions import outcome
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.sensitivity.uses import Layers, Use, check_idle, has_idle_input, idle_input, pull

AGREEMENT = 1e-3
"""Relative difference of both forms of a weight's gradient up to which it is seen through its layers."""


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
        if is_layer(module) and id(module._parameters.get("weight")) in group_of
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
    ran = {use.module for use in uses}
    idle = [Use(*group_of[id(module.weight)], module, 0) for module in holders if module not in ran]
    uses += [use for use in idle if has_idle_input(use)]
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
    check_idle(use for use in idle if use.parameter not in direct)
    rounded = [name for name, index in direct.items() if subject.variants.activations.rounds(index)]
    if rounded:
        raise UserError(
            f"{rounded[0]} is used in other ways than by calling its layer, so the layer's inputs cannot be rounded; "
            "exclude it, or use formats that round weights alone"
        )
    kept = tuple(use for use in uses if use.parameter not in direct)
    routed = experts_in_lists(subject.model)
    per_sample = not any(use.module in routed or use.module not in ran for use in kept) and all(
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
        grads = leaf_gradients(z_NTV, [*taps, *weights.values()], v_NTV)
    return (
        z_NTV.detach(),
        inputs,
        list(grads[: len(taps)]),
        dict(zip(weights, grads[len(taps) :], strict=True)),
    )


def leaf_gradients(
    z_NTV: Tensor, leaves: Sequence[Tensor], v_NTV: Tensor, *, keep_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradient of v·z in every leaf; zero in what z does not depend on, such as a second output's taps.

    Raises:
        UserError: If z cannot be differentiated.
    """
    try:
        return torch.autograd.grad(z_NTV, leaves, v_NTV, retain_graph=keep_graph, materialize_grads=True)
    except RuntimeError as error:
        raise_if_no_room(error)
        raise UserError(
            f"the model's outputs cannot be differentiated ({describe(error)}); take sensitivity: secant, which needs "
            "no gradients"
        ) from error


def check_differentiable(subject: Subject, batch: Samples) -> None:
    """Raise `UserError` if z records no graph from weights: `torch.func.grad` would give zeros without a word.

    Looks at the first group, but for those inside experts of a list, which may have no token.
    """
    routed = experts_in_lists(subject.model)
    always = (
        group
        for group in subject.space.groups
        if not any(holder_of(subject.model, member) in routed for member in group.members)
    )
    originals = subject.variants.originals(next(always, subject.space.groups[0]))
    weights = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in originals.items()}
    with torch.enable_grad():
        z_NTV = run(subject, batch, weights)
    leaf_gradients(z_NTV, list(weights.values()), torch.zeros_like(z_NTV))


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
    seen = all_inputs(layers, inputs, len(batch))
    for index, use in enumerate(layers.uses):
        if index not in taps:
            taps[index] = torch.zeros_like(outcome(use, seen[index]), requires_grad=True)
    return z_NTV, [x.detach() for x in seen], [taps[i] for i in range(len(seen))], weights


def all_inputs(layers: Layers, found: Mapping[int, Tensor], num_samples: int) -> list[Tensor]:
    """The input of every use, in order; see `idle_input` of those that did not run."""
    return [found[i] if i in found else idle_input(use, num_samples) for i, use in enumerate(layers.uses)]


def run(subject: Subject, batch: Samples, weights: Mapping[str, Tensor]) -> Tensor:
    """z with some weights replaced, differentiable in them; tied weights follow."""
    replaced = {f"model.{name}": tensor for name, tensor in weights.items()}
    return called_with(_NamedInputs(subject.model), replaced, (batch.inputs,))


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
        turn = turns.get(module, 0)
        turns[module] = turn + 1
        index = place.get((module, turn))
        if index is None:
            name = next(use.parameter for use in layers.uses if use.module is module)
            raise UserError(
                f"the layer of {name} runs {turn + 1} times for some samples and {turn} times for others, which "
                "derivatives of one pass cannot follow; exclude it, or use secant"
            )
        if isinstance(module, MatrixProduct):
            inputs[index] = torch.cat([x.flatten(1) for x in args], 1)
        else:
            inputs[index] = first_input(layers.uses[index].parameter, args)
        if make_leaves:
            taps[index] = torch.zeros_like(output, requires_grad=True)
        return output + taps[index] if index in taps else output

    handles = [module.register_forward_hook(hook) for module in {use.module: None for use in layers.uses}]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _NamedInputs(nn.Module):
    """A model whose forward pass takes named inputs and returns z, for `called_with`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return forward(self.model, inputs)
