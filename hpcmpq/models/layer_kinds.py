"""What kind of layer a module is, and how each kind multiplies."""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.attention_products import MatrixProduct
from hpcmpq.models.kv_cache import KeyValueCache

Multiply = Callable[[Tensor, Tensor], Tensor]
"""(x, weight) to W(x)."""


def apply(module: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """W(x) of a layer without its bias, for any weight of the layer's shape."""
    return product_of(module)(x, weight)


def product_of(module: nn.Module) -> Multiply:
    """What a layer does without its bias, (x, weight) to W(x)."""
    if isinstance(module, nn.Linear):
        return F.linear
    if isinstance(module, nn.Embedding):
        return F.embedding
    if is_convolution(module):
        return lambda x, weight: module._conv_forward(x, weight, None)  # type: ignore[operator]
    return torch.matmul  # transformers' Conv1D


def first_input(layer: str, args: Sequence[Tensor]) -> Tensor:
    """What a layer multiplies, of the positional arguments that a hook is given.

    Args:
        layer: The name that is told where there is none.
        args: What the hook got.

    Raises:
        UserError: If there are none: hooks do not see what is given by keyword.
    """
    if not args:
        raise UserError(
            f"{layer} is called with keywords only, so its inputs cannot be seen; add it to groups.exclude, or call it "
            "with positional arguments"
        )
    return args[0]


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear map of its weight and its input, up to its bias."""
    return isinstance(module, nn.Embedding) or multiplies(module)


def multiplies(module: nn.Module) -> bool:
    """Whether a layer multiplies its input by its weight: every layer but an embedding."""
    return isinstance(module, _multiplying())


def only_multiplies(module: nn.Module) -> bool:
    """Whether a layer does nothing but multiply and add its bias: a subclass may, say, standardize its weight first.

    Example:
        >>> class Doubling(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(2 * x)
        >>> only_multiplies(nn.Linear(3, 2)), only_multiplies(Doubling(3, 2))
        (True, False)
    """
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _multiplying())


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution that is no transposed one."""
    return isinstance(module, _CONVOLUTIONS)


def is_linear(module: nn.Module) -> bool:
    """Whether a layer multiplies the last axis of its input by a matrix."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _multiplying() -> tuple[type[nn.Module], ...]:
    """Kinds of layers that multiply."""
    return nn.Linear, *_CONVOLUTIONS, *_conv1d()


def _conv1d() -> tuple[type[nn.Module], ...]:
    """transformers' Conv1D; where nothing has imported that, no model holds one."""
    imported = sys.modules.get("transformers.pytorch_utils")
    return () if imported is None else (imported.Conv1D,)


def _is_conv1d(module: nn.Module) -> bool:
    return isinstance(module, _conv1d())


_TRANSPOSED_EXPERTS = ("Llama4TextExperts",)
_EXPERTS = (*_TRANSPOSED_EXPERTS, "LongcatFlashExperts", "Step3p7Experts")
"""Fused experts that transformers does not mark."""


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weights as [..., inputs, outputs]: transformers' Conv1D and some fused experts."""
    fused = type(module).__name__ in _TRANSPOSED_EXPERTS or getattr(module, "is_transposed", False) is True
    return _is_conv1d(module) or (fused and are_experts(module))


def are_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts of a layer, one matrix of each in a tensor of three axes.

    transformers marks its own from version 5 on; before, experts were linear layers.
    """
    marked = hasattr(module, "is_transposed") and hasattr(module, "has_gate")
    return marked or type(module).__name__ in _EXPERTS


def operand_axes(module: nn.Module) -> tuple[tuple[int, ...], ...]:
    """For each input of a module that is rounded, the axes that its products sum over; none for embeddings."""
    if isinstance(module, nn.Embedding):
        return ()
    if isinstance(module, MatrixProduct):
        return (-1,), (-2,)
    if isinstance(module, KeyValueCache):
        return (-1,), (-1,)
    if is_convolution(module):
        return (tuple(range(1 - module.weight.ndim, 0)),)  # type: ignore[operator]
    return ((-1,),)
