"""Heads that are linear in what they are given, as those of language models: z = W h + b, times a number at most.

What an option does to the logits is then W Δh, so that products with it need no logits. Whether a model has such a head
is seen by running it: a soft cap, a mask over the vocabulary or anything else behind the head rules it out.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.models.outputs import forward

log = logging.getLogger(__name__)

LARGE = 1000.0
"""Size of the numbers that stand in for logits in the check, beyond any cap."""


@dataclass(frozen=True)
class LinearHead:
    """The last layer of a model whose outputs are z = W o + s·b, o being what the model gives while it is left out.

    Attributes:
        module: A linear layer with weight W [V, D].
        scale: s, a factor that the model puts on its logits and so on o.
    """

    module: nn.Linear
    scale: float

    @property
    def weight(self) -> Tensor:
        """W [V, D]."""
        return self.module.weight

    def logits(self, before: Tensor) -> Tensor:
        """z [..., V] of o [..., D]."""
        bias = None if self.module.bias is None else self.module.bias * self.scale
        return nn.functional.linear(before, self.weight, bias)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Context in which the model's outputs are o [N, T, D] instead of z [N, T, V]."""
        with _replaced(self.module, lambda x: x):
            yield

    def is_changed_by(self, model: nn.Module, names: Sequence[str]) -> bool:
        """Whether one of a model's parameters is the head's own, or shared with it."""
        own = {id(parameter) for parameter in self.module.parameters()}
        return any(id(model.get_parameter(name)) in own for name in names)


@torch.no_grad()
def find_linear_head(model: nn.Module, inputs: dict[str, Tensor]) -> LinearHead | None:
    """The model's head if the outputs are linear in what it is given, to rounding; else None.

    Args:
        model: In eval mode, with its products in the dtype of its weights.
        inputs: Of a sample; three forward passes are run.
    """
    calls: Counter[nn.Linear] = Counter()
    last: list[tuple[nn.Linear, tuple[int, ...]]] = []

    def note(module: Any, _: Any, output: Tensor) -> None:
        calls[module] += 1
        last[:] = [(module, tuple(output.shape))]

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(note) for module in linear]
    try:
        z_NTV = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not last or calls[last[0][0]] != 1:
        return None
    module, shape = last[0]
    if shape[-1] != z_NTV.shape[-1] or math.prod(shape) != z_NTV.numel():
        return None
    generator = torch.Generator().manual_seed(0)
    any_NTV = LARGE * torch.randn(z_NTV.shape, generator=generator).to(z_NTV)
    with _replaced(module, lambda x: any_NTV.reshape(shape)):
        behind_NTV = forward(model, inputs)
    if behind_NTV.shape != any_NTV.shape or not torch.isfinite(behind_NTV).all():
        return None
    scale = float((behind_NTV.double() * any_NTV).sum() / any_NTV.double().square().sum())
    head = LinearHead(module, 1.0 if abs(scale - 1) < 1e-9 else scale)
    try:
        with head.left_out():
            before_NTD = forward(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the model's own code, which may count on the vocabulary's size
        log.debug("the model does not run without its head: %s", error)
        return None
    if before_NTD.shape[:2] != z_NTV.shape[:2] or before_NTD.shape[-1] != module.weight.shape[1]:
        return None
    alike = _alike(behind_NTV, scale * any_NTV) and _alike(head.logits(before_NTD), z_NTV)
    return head if alike else None


def _alike(found: Tensor, expected: Tensor) -> bool:
    limit = 64 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool((found - expected).abs().max() <= limit)


@contextmanager
def _replaced(module: nn.Module, function: Any) -> Iterator[None]:
    """Another forward method on a module, also where it has one of its own already."""
    before = module.__dict__.get("forward")
    module.forward = function  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before  # type: ignore[method-assign]
