"""Exact second-order directional derivatives between quantization errors, within and across layers.

    c_p  = g·δ_p + ½ δ_pᵀ H δ_p
    H_pq = δ_pᵀ H δ_q

with g and H the gradient and Hessian of the mean loss in the weights. H δ_p is the forward derivative, along δ_p,
of the reverse-mode gradient (Pearlmutter 1994). Rows are taken group by group: the options of one group share one
vmap, the tangent exists for that group's weights only, and since H is symmetric the gradient is taken for this
group and later ones only.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from hpcmpq.models.calibration import Samples
from hpcmpq.models.load import forward
from hpcmpq.sensitivity import Contribution, Subject

Tensors = dict[str, Tensor]


def measure(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution]:
    """One contribution per pass of `samples_per_pass` samples, for the rows of `groups`."""
    for start in range(0, len(samples), subject.samples_per_pass):
        batch = samples[start : start + subject.samples_per_pass]
        with torch.no_grad():
            z0_NTV = forward(subject.model, batch.inputs)
            loss0 = float(subject.objective.value(z0_NTV, z0_NTV, batch.targets).sum())
        linear, quad = zip(*(_rows(subject, batch, z0_NTV, group) for group in groups), strict=True)
        yield Contribution(len(batch), loss0, np.concatenate(linear), np.concatenate(quad))


def _rows(subject: Subject, batch: Samples, z0_NTV: Tensor, group: int) -> tuple[np.ndarray, np.ndarray]:
    """c [K] and H [K, P] of the K options of one group, summed over the batch; earlier columns are zero."""
    space, variants = subject.space, subject.variants
    own = variants.originals(space.groups[group])
    later = {
        name: tensor
        for index in range(group + 1, len(space.groups))
        for name, tensor in variants.originals(space.groups[index]).items()
    }

    def total_loss(own: Tensors, later: Tensors) -> Tensor:
        z_NTV = functional_forward(subject, {**own, **later}, batch)
        return subject.objective.value(z_NTV, z0_NTV, batch.targets).sum()

    gradient = grad(total_loss, argnums=(0, 1))

    def directional(delta: Tensors) -> tuple[tuple[Tensors, Tensors], tuple[Tensors, Tensors]]:
        return jvp(lambda tensors: gradient(tensors, later), (own,), (delta,))

    delta = variants.errors(group)
    first, second = vmap(directional, out_dims=(None, 0))(delta)
    slope_K = contract_one(first[0], delta)
    num_options = len(space.formats[group])
    quad_KP = np.zeros((num_options, space.num_options))
    quad_KP[:, space.slice_of(group)] = contract(second[0], delta)
    for index in range(group + 1, len(space.groups)):
        names = variants.originals(space.groups[index])
        rows = {name: second[1][name] for name in names}
        quad_KP[:, space.slice_of(index)] = contract(rows, variants.errors(index))
    curvature_K = np.diagonal(quad_KP[:, space.slice_of(group)])
    return slope_K + 0.5 * curvature_K, quad_KP


def functional_forward(subject: Subject, tensors: Tensors, batch: Samples) -> Tensor:
    """Outputs of the model with some parameters replaced, differentiable in them."""

    class _Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = subject.model

        def forward(self) -> Tensor:
            return forward(self.model, batch.inputs)

    return functional_call(_Outputs(), {f"model.{name}": tensor for name, tensor in tensors.items()}, ())


def contract(rows: Tensors, columns: Tensors) -> np.ndarray:
    """Σ over parameters of ⟨rows[k], columns[l]⟩, float64 [K, L], from stacks [K, ...] and [L, ...]."""
    return sum(
        rows[name].flatten(1).double() @ columns[name].flatten(1).double().T for name in rows
    ).cpu().numpy()  # type: ignore[union-attr]


def contract_one(row: Tensors, columns: Tensors) -> np.ndarray:
    """Σ over parameters of ⟨row, columns[l]⟩, float64 [L]."""
    return contract({name: tensor[None] for name, tensor in row.items()}, columns)[0]
