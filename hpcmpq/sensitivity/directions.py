"""How options move the output of a use, with the errors of activations frozen at the original's (DESIGN, section 4).

With t the coordinate of an option, δ its weight error and e = Q(x) − x the error of its inputs at t = 0,

    layer     y(t) = (W + tδ)(x + te)        ẏ = δ(x) + W(e)        ÿ = 2 δ(e)
    product   y(t) = (l + te_l)(r + te_r)    ẏ = e_l r + l e_r      ÿ = 2 e_l e_r

Re-rounding x while t moves would make the loss jump, so that no derivative exists. The two factors of a product are
handled as one tensor, side by side.

Axis letters: Q options of one group.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.func import vjp

from hpcmpq.models.layer_kinds import apply, operand_axes
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.sensitivity.uses import Use

Errors = dict[str, Tensor]
"""`weight`: δ of every option of a use's group, [Q, *shape]; `input`: e, [Q, *x.shape]. Either may be absent."""


def errors_at(subject: Subject, use: Use, x: Tensor, delta: Mapping[str, Tensor]) -> Errors:
    """The errors of a use's options at its input; `delta` is what `Variants.errors` gives for its group."""
    errors = {}
    if use.parameter in delta:
        errors["weight"] = delta[use.parameter]
    if operand_axes(use.module):
        operands = factors(use, x)
        error_Q = subject.variants.activations.errors(use.group, use.module, operands)
        if error_Q is not None:
            errors["input"] = torch.func.vmap(side_by_side)(error_Q) if use.shapes else error_Q[0]
    return errors


def outcome(use: Use, x: Tensor) -> Tensor:
    """y of a use without its bias."""
    if use.shapes:
        left, right = factors(use, x)
        return left @ right
    return apply(use.module, use.module.weight, x)  # type: ignore[arg-type]


def moved(use: Use, x: Tensor, error: Errors) -> Tensor:
    """ẏ of one option."""
    if use.shapes:
        (left, right), (left_error, right_error) = factors(use, x), factors(use, error["input"])
        return left_error @ right + left @ right_error
    parts = [apply(use.module, error["weight"], x)]
    if "input" in error:
        parts.append(apply(use.module, use.module.weight, error["input"]))  # type: ignore[arg-type]
    return sum(parts[1:], parts[0])


def bent(use: Use, error: Errors) -> Tensor:
    """ÿ of one option that rounds inputs."""
    if use.shapes:
        left_error, right_error = factors(use, error["input"])
        return 2 * left_error @ right_error
    return 2 * apply(use.module, error["weight"], error["input"])


def input_gradient(use: Use, x: Tensor, grad_y: Tensor) -> Tensor:
    """∂L/∂x through this use alone, from the gradient in its output."""
    return vjp(lambda x: outcome(use, x), x)[1](grad_y)[0]


def factors(use: Use, x: Tensor) -> tuple[Tensor, ...]:
    """The inputs of a use: of a product, its two factors."""
    if not use.shapes:
        return (x,)
    sizes = [prod(shape) for shape in use.shapes]
    return tuple(part.unflatten(1, shape) for part, shape in zip(x.split(sizes, 1), use.shapes, strict=True))


def side_by_side(operands: Sequence[Tensor]) -> Tensor:
    """The inverse of `factors` for a product: [N, elements of both]."""
    return torch.cat([operand.flatten(1) for operand in operands], 1)
