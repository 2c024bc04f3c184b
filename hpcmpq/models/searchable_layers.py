"""One forward pass that finds every layer with a weight, its arithmetic, and what the outputs come from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hpcmpq.models.layer_kinds import are_experts, is_layer, is_transposed
from hpcmpq.models.outputs import tried_forward
from hpcmpq.models.routers import TracedChoices, choosing_weights, mixtures, own_name

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layer:
    """A weight that could be quantized.

    Attributes:
        names: Module names that hold this same weight, in model order; more than one if it is tied. A weight that is
            no module's `weight` goes by its own name (`is_parameter`).
        transposed: Whether the weight is stored as [inputs, outputs].
        macs: Multiply-accumulates of one sample's forward pass.
        used: Whether the outputs depend on the weight (whether it ran, if the model forbids gradients).
        ran_last: Whether it was the last layer to run.
        is_output: Whether it ran last and its output is the model's output.
        declared_head: Whether it is the model's `get_output_embeddings()`.
        chooses: Whether its output chooses or weighs experts, see `hpcmpq.models.routers`.
    """

    names: tuple[str, ...]
    transposed: bool = False
    macs: int = 0
    used: bool = False
    ran_last: bool = False
    is_output: bool = False
    declared_head: bool = False
    chooses: bool = False
    is_parameter: bool = False

    @property
    def parameter(self) -> str:
        """The weight's own name."""
        return self.names[0] if self.is_parameter else f"{self.names[0]}.weight".removeprefix(".")


@dataclass(frozen=True)
class _Place:
    """Where a weight is: `module`'s parameter `own_name`."""

    module: nn.Module
    own_name: str = "weight"
    transposed: bool = False


def trace_layers(model: nn.Module, sample_inputs: dict[str, Tensor]) -> list[Layer]:
    """All weights of linear layers, convolutions, embeddings, fused experts and attention modules in model order.

    Tied ones are listed once. Of experts in a list all are used if one is, whichever the sample's tokens were given to.

    Args:
        model: In eval mode.
        sample_inputs: Only the first sample is used; moved to the model's device.

    Raises:
        UserError: If the model's forward method fails on them, or returns nothing that can be compared.
    """
    places_of = _weights(model)
    device = next(iter(places_of)).device if places_of else torch.device("cpu")
    inputs = {key: value[:1].to(device) for key, value in sample_inputs.items()}
    macs = {name: 0 for places in places_of.values() for name in places}
    # Only the last output is held: a freed one's address could be taken by the model's output.
    last: list[tuple[str, Tensor]] = []
    ran: set[str] = set()

    def record(name: str, place: _Place) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            macs[name] += _macs(place, (*args, *kwargs.values()), output)
            last[:] = [(name, output)]
            ran.add(name)

        return hook

    handles = [
        place.module.register_forward_hook(record(name, place), with_kwargs=True)
        for places in places_of.values()
        for name, place in places.items()
    ]
    choices = TracedChoices(model)
    try:
        with _gradients(list(places_of)), choices:
            z_NTV = tried_forward(model, inputs)
            reached = _reached_weights(z_NTV)
    finally:
        for handle in handles:
            handle.remove()
    last_name, last_output = last[0] if last else (None, z_NTV)
    last_is_output = last_output.numel() == z_NTV.numel() and _same_memory(last_output, z_NTV)
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    choosing = choosing_weights(
        model, {weight: _outputs_of(places) for weight, places in places_of.items()}, choices.chosen_by
    )
    layers = [
        Layer(
            names=tuple(places),
            transposed=next(iter(places.values())).transposed,
            macs=sum(macs[name] for name in places),
            used=id(weight) in reached if z_NTV.grad_fn is not None else bool(ran.intersection(places)),
            ran_last=last_name in places,
            is_output=last_name in places and last_is_output,
            declared_head=any(place.module is head for place in places.values()),
            chooses=id(weight) in choosing,
            is_parameter=next(iter(places.values())).own_name != "weight",
        )
        for weight, places in places_of.items()
    ]
    return _with_idle_experts(model, layers)


def _with_idle_experts(model: nn.Module, layers: list[Layer]) -> list[Layer]:
    """The layers, experts that a sample happens not to reach being used as the others of their list are.

    The arithmetic of all experts of such a list is then shared out evenly, as if each was chosen equally often.
    """
    of_list: dict[tuple[str, str], list[int]] = {}
    lists = [experts for _, experts, _ in mixtures(model)]
    for place, layer in enumerate(layers):
        for experts in lists:
            own = own_name(experts, layer.names[0])
            if own is not None and not layer.is_parameter:
                of_list.setdefault((experts, own), []).append(place)
    found = list(layers)
    for places in of_list.values():
        alike = [layers[place] for place in places]
        if any(layer.used for layer in alike) and not all(layer.used for layer in alike):
            macs = sum(layer.macs for layer in alike) // len(alike)
            for place in places:
                found[place] = replace(layers[place], used=True, macs=macs)
    return found


def plain_experts(model: nn.Module) -> None:
    """Let fused experts run as batched products, which have shapes without values and derivatives of any order."""
    _run_experts(model, "batched_mm")


def experts_one_by_one(model: nn.Module) -> None:
    """Let fused experts run one after another, each multiplied by its own part of the weight and by no copy of it."""
    _run_experts(model, "eager")


def _run_experts(model: nn.Module, implementation: str) -> None:
    choose = getattr(model, "set_experts_implementation", None)
    if callable(choose) and any(are_experts(module) for module in model.modules()):
        choose(implementation)


def _weights(model: nn.Module) -> dict[nn.Parameter, dict[str, _Place]]:
    """{weight: {name: place} of all that hold it} over all weights that can be quantized."""
    places_of: dict[nn.Parameter, dict[str, _Place]] = {}

    def add(weight: nn.Parameter | None, name: str, place: _Place) -> None:
        if weight is not None:
            places_of.setdefault(weight, {})[name] = place

    for name, module in model.named_modules():
        if is_layer(module):
            add(module._parameters.get("weight"), name, _Place(module, transposed=is_transposed(module)))
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            for own in _ATTENTION_WEIGHTS:
                add(module._parameters.get(own), prefix + own, _Place(module, own))
        elif are_experts(module):
            for own, weight in module._parameters.items():
                if weight is not None and weight.ndim == 3:
                    add(weight, prefix + own, _Place(module, own, is_transposed(module)))
    return places_of


def _outputs_of(places: dict[str, _Place]) -> tuple[str, int]:
    """The module that holds a weight, and how many outputs it has; 0 where it is no layer's `weight`."""
    name, place = next(iter(places.items()))
    if place.own_name != "weight":
        return name.rpartition(".")[0], 0
    return name, place.module.get_parameter("weight").shape[1 if place.transposed else 0]


def _macs(place: _Place, args: Any, output: Any) -> int:
    """Multiply-accumulates of one call of the module that holds a weight; 0 where nobody knows."""
    weight = place.module._parameters[place.own_name]
    assert weight is not None
    if are_experts(place.module):
        # (hidden states, chosen experts [positions, experts per position], ...), or hidden states of every expert
        chosen = args[1].numel() if len(args) > 1 else args[0].numel() // args[0].shape[-1]
        return chosen * (weight.numel() // len(weight))
    if place.own_name != "weight" or isinstance(place.module, nn.Embedding) or not isinstance(output, Tensor):
        return 0
    return output.numel() * (weight.numel() // weight.shape[place.transposed])


def _same_memory(first: Tensor, second: Tensor) -> bool:
    if isinstance(first, FakeTensor):  # has no address
        return first is second or second._base is first
    return first.data_ptr() == second.data_ptr()


@contextmanager
def _gradients(weights: list[nn.Parameter]) -> Iterator[None]:
    """Record a graph from these weights, keeping no activation: only its shape is wanted."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_forget, _forget):
            yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)


def _forget(saved: Any) -> Any:
    return None


def _reached_weights(output: Tensor) -> set[int]:
    """Identities of the parameters that `output` depends on."""
    reached: set[int] = set()
    seen: set[Any] = set()
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return reached
