"""Derivatives ∂L_n/∂t_p of every sample and option from one backward pass, through the uses of the weights.

Along option p a weight moves by δ_p and a layer's input by its frozen error e_p: ⟨∂L_n/∂w, δ_p⟩ + ⟨∂L_n/∂x, e_p⟩.

Axis letters: N samples, R rows, Q options of one group, T positions, M outputs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import vmap

from hpcmpq.models.layer_kinds import apply, is_linear
from hpcmpq.models.weights import Tensors
from hpcmpq.sensitivity.directions import errors_at, input_gradient
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.sensitivity.taps import leaf_gradients
from hpcmpq.sensitivity.uses import Layers, Use, pull

SLOPE_ELEMENTS = 2**24
"""Per-sample weight gradients held at once, in elements."""


def row_slopes(
    subject: Subject, layers: Layers, groups: range, z_NTV: Tensor, v_NTV: Tensor,
    inputs: list[Tensor], taps: list[Tensor], weights: Tensors,
) -> Tensor:  # fmt: skip
    """d(v_n·z_n)/dt_p of every sample and option of `groups`, [N, R], from one backward pass; keeps the graph."""
    return slopes_of_rows(subject, layers, groups, z_NTV, [v_NTV], inputs, taps, weights)[:, :, 0]


def slopes_of_rows(
    subject: Subject, layers: Layers, groups: range, z_NTV: Tensor, rows: list[Tensor],
    inputs: list[Tensor], taps: list[Tensor], weights: Tensors,
) -> Tensor:  # fmt: skip
    """The same of several cotangents v_NTV, [N, R, rows]: a backward pass each, options' errors made once for all."""
    leaves = [*taps, *weights.values()]
    grads = [leaf_gradients(z_NTV, leaves, v_NTV, keep_graph=True) for v_NTV in rows]
    direct_grads = [dict(zip(weights, grad[len(taps) :], strict=True)) for grad in grads]
    columns = []
    for group in groups:
        delta = subject.variants.errors(group)
        slopes = [z_NTV.new_zeros(len(z_NTV), len(subject.space.formats[group])) for _ in rows]
        for index in layers.uses_of(group):
            use, x = layers.uses[index], inputs[index]
            errors = errors_at(subject, use, x, delta)
            for row, grad in enumerate(grads):
                if "weight" in errors:
                    slopes[row] = slopes[row] + use_slopes(use, errors["weight"], x, grad[index], len(z_NTV))
                if "input" in errors:
                    grad_x = input_gradient(use, x, grad[index])
                    slopes[row] = slopes[row] + inner(errors["input"], grad_x[None], len(z_NTV))[:, :, 0]
        for name in layers.direct_of(group):  # a pass holds one sample here
            for row, direct in enumerate(direct_grads):
                slopes[row] = slopes[row] + inner(delta[name], direct[name][None], 1)[:, :, 0]
        columns.append(torch.stack(slopes, 2))
    return torch.cat(columns, 1).detach()


def use_slopes(use: Use, delta_Q: Tensor, x: Tensor, grad_y: Tensor, num_samples: int) -> Tensor:
    """⟨∂L_n/∂W, δ_k⟩ through one use, [N, Q], in the cheaper of two forms.

    With T positions per sample, a linear layer's gradient of one sample costs T products per weight and its
    contraction Q more, where δ_k(x) costs T·Q.
    """
    if not is_linear(use.module) or x.numel() <= 2 * num_samples * x.shape[-1]:
        y_Q = vmap(lambda delta: apply(use.module, delta, x))(delta_Q)
        return inner(y_Q, grad_y[None], num_samples)[:, :, 0]
    flat_QW = delta_Q.flatten(1)
    return torch.cat(
        [grad_NW.flatten(1) @ flat_QW.T for grad_NW in weight_gradients(use, x, grad_y, num_samples)]
    )


def weight_gradients(use: Use, x: Tensor, grad_y: Tensor, num_samples: int) -> Iterator[Tensor]:
    """∂L_n/∂W of all samples through one use, some at a time: [n, *shape of W]."""
    step = max(1, SLOPE_ELEMENTS // use.module.weight.numel())  # type: ignore[operator]
    x_N = x.reshape(num_samples, -1, *x.shape[1:])
    grad_N = grad_y.reshape(num_samples, -1, *grad_y.shape[1:])
    for x_n, grad_n in zip(x_N.split(step), grad_N.split(step), strict=True):
        if is_linear(use.module):
            x_nTK = x_n.reshape(len(x_n), -1, x.shape[-1])
            grad_nTM = grad_n.reshape(len(x_n), -1, grad_y.shape[-1])
            stored_as_MK = isinstance(use.module, nn.Linear)
            left, right = (grad_nTM, x_nTK) if stored_as_MK else (x_nTK, grad_nTM)
            yield torch.bmm(left.transpose(1, 2), right)
        else:
            yield vmap(lambda x, grad: pull(use, x, grad))(x_n, grad_n)


def inner(left_Q: Tensor, right_L: Tensor, num_samples: int) -> Tensor:
    """Σ over everything but the sample of left_k · right_l, [N, Q, L]."""
    left_NQD = left_Q.reshape(left_Q.shape[0], num_samples, -1).transpose(0, 1)
    right_NLD = right_L.reshape(right_L.shape[0], num_samples, -1).transpose(0, 1)
    return torch.bmm(left_NQD, right_NLD.transpose(1, 2))
