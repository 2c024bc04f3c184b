"""One forward pass that finds every layer with a weight, its arithmetic, and what the outputs come from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hpcmpq.models.outputs import forward


@dataclass(frozen=True)
class Layer:
    """A weight that could be quantized.

    Attributes:
        names: Module names that hold this same weight, in model order; more than one if it is tied.
        transposed: Whether the weight is stored as [inputs, outputs].
        macs: Multiply-accumulates of one sample's forward pass.
        used: Whether the outputs depend on the weight (whether it ran, if the model forbids gradients).
        ran_last: Whether it was the last layer to run.
        is_output: Whether it ran last and its output is the model's output.
        declared_head: Whether it is the model's `get_output_embeddings()`.
    """

    names: tuple[str, ...]
    transposed: bool = False
    macs: int = 0
    used: bool = False
    ran_last: bool = False
    is_output: bool = False
    declared_head: bool = False


def trace_layers(model: nn.Module, sample_inputs: dict[str, Tensor]) -> list[Layer]:
    """All linear, convolution and embedding weights in model order, tied ones once.

    Args:
        model: In eval mode.
        sample_inputs: Only the first sample is used; moved to the model's device.
    """
    names_of = _weights(model)
    modules = {name: model.get_submodule(name) for names in names_of.values() for name in names}
    device = next(iter(names_of)).device if names_of else torch.device("cpu")
    inputs = {key: value[:1].to(device) for key, value in sample_inputs.items()}
    macs = dict.fromkeys(modules, 0)
    # Only the last output is held: a freed one's address could be taken by the model's output.
    last: list[tuple[str, Tensor]] = []
    ran: set[str] = set()

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(module, nn.Embedding):
                weight = _weight(module)
                macs[name] += output.numel() * (weight.numel() // weight.shape[_is_transposed(module)])
            last[:] = [(name, output)]
            ran.add(name)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in modules.items()]
    try:
        with _gradients(list(names_of)):
            z_NTV = forward(model, inputs)
            reached = _reached_weights(z_NTV)
    finally:
        for handle in handles:
            handle.remove()
    last_name, last_output = last[0] if last else (None, z_NTV)
    last_is_output = last_output.numel() == z_NTV.numel() and _same_memory(last_output, z_NTV)
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    return [
        Layer(
            names=names,
            transposed=_is_transposed(modules[names[0]]),
            macs=sum(macs[name] for name in names),
            used=id(weight) in reached if z_NTV.grad_fn is not None else bool(ran.intersection(names)),
            ran_last=last_name in names,
            is_output=last_name in names and last_is_output,
            declared_head=any(modules[name] is head for name in names),
        )
        for weight, names in names_of.items()
    ]


def _weights(model: nn.Module) -> dict[nn.Parameter, tuple[str, ...]]:
    """{weight: names of the modules that hold it} over all layers with a quantizable weight."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, Conv1D)
    names_of: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, kinds) and weight is not None:
            names_of[weight] = (*names_of.get(weight, ()), name)
    return names_of


def _same_memory(first: Tensor, second: Tensor) -> bool:
    if isinstance(first, FakeTensor):  # has no address
        return first is second or second._base is first
    return first.data_ptr() == second.data_ptr()


def _is_transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


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
