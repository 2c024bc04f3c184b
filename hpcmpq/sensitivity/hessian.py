"""Exact second-order directional derivatives between quantization errors, within and across layers.

    c_p  = g·δ_p + ½ δ_pᵀ H δ_p
    H_pq = δ_pᵀ H δ_q

with g and H the gradient and Hessian of the mean loss in the weights. H δ_p is the forward derivative, along δ_p,
of the reverse-mode gradient (Pearlmutter 1994); H is symmetric, so columns are the row's group and later ones.

Weights are seen through their layers (`taps.py`): with y = q(x) a use of weight q, g_y = ∂L/∂y, and dots for
derivatives along δ_p,

    H_pq = Σ over uses of q  ⟨ġ_y, δ_q(x)⟩ + ⟨δ_qᵀ(g_y), ẋ⟩ .

Where options round activations, δ_q(x) becomes the whole movement ẏ_q of the output at frozen errors, δ_qᵀ its
transpose in x, and c_p gains ½⟨g_y, ÿ_p⟩ (`directions.py`).

The tangent enters as ẏ = δ_p(x) at p's own layer, and ġ_x = δ_pᵀ(g_y) on the way back. Both products are the same
for all rows and computed once, so no tangent or gradient of a weight's size exists, and a row costs two matrix
products per later layer where its gradient would cost three in every layer. Options of groups that read the same
input (q, k and v) share one vmap. All sums run sample by sample, which gives standard errors.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.layer_kinds import operand_axes
from hpcmpq.models.outputs import forward
from hpcmpq.objective import no_gradient
from hpcmpq.sensitivity import gauss_newton
from hpcmpq.sensitivity.directions import Errors, bent, errors_at, moved
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.slopes import inner
from hpcmpq.sensitivity.subject import Contribution, Subject
from hpcmpq.sensitivity.taps import find_layers, leaf_gradients, run, run_with_taps, tapped
from hpcmpq.sensitivity.uses import Layers

KEPT_BYTES = 2**31
"""Products δ_q(x) and δ_qᵀ(g_y) kept between rows; beyond this they are computed again for every row."""

ByUse = dict[int, Tensor]
ByName = dict[str, Tensor]


def measure(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution] | Iterator[Features]:
    """One contribution per sample, or features per pass, for the rows of `groups`.

    Where the loss has no gradient at the original (kl, mse) and outputs are few enough to keep, H = JᵀΛJ holds
    exactly and `gauss_newton` gives the same numbers without a reverse sweep.
    """
    if subject.objective.gradient is no_gradient and subject.num_probes is None:
        return gauss_newton.measure(subject, samples, groups, first_sample)
    return measure_by_reversal(subject, samples, groups)


def measure_by_reversal(subject: Subject, samples: Samples, groups: range) -> Iterator[Contribution]:
    """One contribution per sample for any objective, by forward over reverse."""
    layers = find_layers(subject, samples)
    for _, batch in layers.passes(subject, samples):
        with torch.no_grad():
            z0_NTV = forward(subject.model, batch.inputs)
            loss0_N = subject.objective.value(z0_NTV, z0_NTV, batch.targets).double().cpu().numpy()
        point = _Point(subject, layers, batch, z0_NTV)
        rows = [point.rows(together) for together in layers.sharing_input(groups, point.inputs)]
        linear_NR = np.concatenate([linear for linear, _ in rows], axis=1)
        quad_NRP = np.concatenate([quad for _, quad in rows], axis=1)
        for n in range(len(batch)):
            yield Contribution(1, float(loss0_N[n]), linear_NR[n], quad_NRP[n])


class _Point:
    """The original on one batch: inputs and gradients of its layers, and the products that all rows share."""

    def __init__(self, subject: Subject, layers: Layers, batch: Samples, z0_NTV: Tensor) -> None:
        self.subject, self.layers, self.batch, self.z0_NTV = subject, layers, batch, z0_NTV
        self.output_grad_NTV = subject.objective.gradient(z0_NTV, z0_NTV, batch.targets)
        with torch.enable_grad():
            z_NTV, self.inputs, taps, weights = run_with_taps(subject, layers, batch)
            grads = leaf_gradients(z_NTV, [*taps, *weights.values()], self.output_grad_NTV)
        self.grads = grads[: len(taps)]
        self.direct_grads = dict(zip(weights, grads[len(taps) :], strict=True))
        self.kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self.kept_bytes = 0

    def rows(self, groups: range) -> tuple[np.ndarray, np.ndarray]:
        """c [N, R] and H [N, R, P] of the R options of some groups; columns of earlier groups are zero."""
        space, variants, num_samples = self.subject.space, self.subject.variants, len(self.batch)
        first = space.slice_of(groups.start).start
        num_rows = space.slice_of(groups.stop - 1).stop - first
        later = [index for index, use in enumerate(self.layers.uses) if use.group >= groups.start]
        direct = [name for name, index in self.layers.direct.items() if index >= groups.start]
        tangents = self._tangents(groups, first, num_rows)
        grad_dots, weight_dots, input_dots = vmap(self._along(later, direct))(*tangents)
        slope_NR = torch.zeros(num_samples, num_rows, dtype=torch.float64)
        quad_NRP = torch.zeros(num_samples, num_rows, space.num_options, dtype=torch.float64)
        for index in later:
            columns = space.slice_of(self.layers.uses[index].group)
            forth_L, back_L = self._products(index)
            quad_NRP[:, :, columns] += inner(grad_dots[index], forth_L, num_samples).cpu()
            if back_L is not None and index in input_dots:
                quad_NRP[:, :, columns] += inner(input_dots[index], back_L, num_samples).cpu()
            if self.layers.uses[index].group in groups:
                own = slice(columns.start - first, columns.stop - first)
                slope_NR[:, own] += inner(forth_L, self.grads[index][None], num_samples)[:, :, 0].cpu()
                slope_NR[:, own] += 0.5 * self._bends(index, num_samples)
        for name in direct:  # a pass holds one sample here
            errors_L, group = variants.errors(self.layers.direct[name])[name], self.layers.direct[name]
            quad_NRP[:, :, space.slice_of(group)] += inner(weight_dots[name], errors_L, 1).cpu()
            if group in groups:
                slope_NR += inner(errors_L, self.direct_grads[name][None], 1)[:, :, 0].cpu()
        own_NRR = quad_NRP[:, :, first : first + num_rows]
        linear_NR = slope_NR + 0.5 * torch.diagonal(own_NRR, dim1=1, dim2=2)
        return linear_NR.numpy(), quad_NRP.numpy()

    def _tangents(self, groups: range, first: int, num_rows: int) -> tuple[ByUse, ByUse, ByName]:
        """ẏ of the rows' own uses, ġ_x of groups with several uses, δ of direct weights; R in front."""
        taps: ByUse = {}
        returns: ByUse = {}
        weights: ByName = {}
        for group in groups:
            own = self.subject.space.slice_of(group)
            uses = self.layers.uses_of(group)
            direct = self.layers.direct_of(group)
            for index in uses:
                forth_L, back_L = self._products(index)
                taps[index] = forth_L.new_zeros(num_rows, *forth_L.shape[1:])
                taps[index][own.start - first : own.stop - first] = forth_L
                if back_L is not None and (len(uses) + len(direct) > 1 or self._precedes(group, index)):
                    returns[index] = back_L.new_zeros(num_rows, *back_L.shape[1:])
                    returns[index][own.start - first : own.stop - first] = back_L
            weights.update({name: self.subject.variants.errors(group)[name] for name in direct})
        return taps, returns, weights

    def _along(self, later: list[int], direct: list[str]) -> Callable[..., tuple[ByUse, ByName, ByUse]]:
        """Tangents ↦ derivatives of the gradients in later taps and direct weights, and of later inputs."""
        originals = {name: self.subject.model.get_parameter(name) for name in direct}
        zeros = {index: torch.zeros_like(self.grads[index]) for index in later}

        def loss(taps: ByUse, weights: ByName, returns: ByUse) -> tuple[Tensor, ByUse]:
            inputs: ByUse = {}
            with tapped(self.layers, inputs, taps):
                z_NTV = run(self.subject, self.batch, weights)
            ran = [index for index in returns if index in inputs]
            total = self._expanded(z_NTV) + sum((inputs[index] * returns[index]).sum() for index in ran)
            seen = {index: inputs[index] for index in later if index in inputs}
            return total, {index: x for index, x in seen.items() if x.is_floating_point()}

        def gradients(taps: ByUse, returns: ByUse, weights: ByName) -> tuple[ByUse, ByName, ByUse]:
            variables = ({**zeros, **taps}, {**originals, **weights})
            (tap_grads, weight_grads), inputs = grad(loss, argnums=(0, 1), has_aux=True)(*variables, returns)
            return tap_grads, weight_grads, inputs

        def along(taps: ByUse, returns: ByUse, weights: ByName) -> tuple[ByUse, ByName, ByUse]:
            at = (
                {index: zeros[index] for index in taps},
                {index: torch.zeros_like(self.inputs[index]) for index in returns},
                {name: originals[name] for name in weights},
            )
            dots = jvp(gradients, at, (taps, returns, weights))[1]
            still = {index for index in taps if index not in returns}
            return dots[0], dots[1], {index: dot for index, dot in dots[2].items() if index not in still}

        return along

    def _expanded(self, z_NTV: Tensor) -> Tensor:
        """g·u + ½ |Λ^½ u|², u = z − z0: same first and second derivatives at z0 as the loss, and far cheaper."""
        u_NTV = z_NTV - self.z0_NTV
        phi_NTV = self.subject.objective.scaled_displacement(u_NTV, self.z0_NTV, self.batch.targets)
        return (self.output_grad_NTV * u_NTV).sum() + 0.5 * phi_NTV.square().sum()

    def _bends(self, index: int, num_samples: int) -> Tensor:
        """⟨g_y, ÿ⟩ of every option of a use, float64 [N, L]; zero where none rounds activations."""
        use = self.layers.uses[index]
        variants = self.subject.variants
        if not (variants.activations.rounds(use.group) and operand_axes(use.module)):
            return torch.zeros(num_samples, 1, dtype=torch.float64)
        errors_L = errors_at(self.subject, use, self.inputs[index], variants.errors(use.group))
        bent_L = vmap(lambda errors: bent(use, errors))(errors_L)
        return inner(bent_L, self.grads[index][None], num_samples)[:, :, 0].double().cpu()

    def _precedes(self, group: int, index: int) -> bool:
        """Whether a group that comes later among the options runs before use `index` does."""
        return any(use.group > group for use in self.layers.uses[:index])

    def _products(self, index: int) -> tuple[Tensor, Tensor | None]:
        """δ_q(x) and δ_qᵀ(g_y) of every option of a use, [L, N, ...] each; no second one for integer inputs."""
        if index in self.kept:
            return self.kept[index]
        use, x, grad_y = self.layers.uses[index], self.inputs[index], self.grads[index]
        errors_L = errors_at(self.subject, use, x, self.subject.variants.errors(use.group))

        def both(errors: Errors) -> tuple[Tensor, Tensor]:
            y, pull = vjp(lambda x: moved(use, x, errors), x)[:2]
            return y, pull(grad_y)[0]

        products: tuple[Tensor, Tensor | None]
        if x.is_floating_point():
            products = vmap(both)(errors_L)
        else:
            products = vmap(lambda errors: moved(use, x, errors))(errors_L), None
        size = sum(product.nbytes for product in products if product is not None)
        if self.kept_bytes + size <= KEPT_BYTES:
            self.kept[index] = products
            self.kept_bytes += size
        return products
