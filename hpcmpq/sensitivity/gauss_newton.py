"""Generalised Gauss-Newton: first-order displacements of the outputs.

    φ_p  = Λ^½ J δ_p
    c_p  = g·J δ_p + ½ φ_p·φ_p
    H_pq = φ_p·φ_q

with J the Jacobian of the outputs in the weights and g, Λ the gradient and Hessian of the loss in the outputs
(Schraudolph 2002). For kl and mse g is zero, and this is the Hessian itself.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vmap

from hpcmpq.models.data.samples import Samples
from hpcmpq.sensitivity.directions import errors_at, moved
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.probes import make_probes
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.sensitivity.taps import all_inputs, find_layers, run, tapped
from hpcmpq.sensitivity.uses import Layers

HELD_ELEMENTS = 2**26
"""Output displacements computed at once, in elements."""


@torch.no_grad()
def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Features]:
    """Features of the options of `groups`, one part per pass of `samples_per_pass` samples."""
    layers = find_layers(subject, samples)
    for start in range(0, len(samples), subject.samples_per_pass):
        batch = samples[start : start + subject.samples_per_pass]
        found: dict[int, Tensor] = {}
        with tapped(layers, found, {}):
            z0_NTV = run(subject, batch, {})
        inputs = all_inputs(layers, found, len(batch))
        project = make_probes(
            subject.num_probes, z0_NTV, seed=subject.seed, first_sample=first_sample + start
        )
        objective, targets = subject.objective, batch.targets
        gradient_NTV = objective.gradient(z0_NTV, z0_NTV, targets)
        phi_NQF, increase_NQ = [], []
        for together in layers.sharing_input(groups, inputs):
            for u_NTV in displacements(subject, layers, batch, inputs, together, z0_NTV.numel()):
                phi_NTV = objective.scaled_displacement(u_NTV, z0_NTV, targets)
                increase_NTV = gradient_NTV * u_NTV + 0.5 * phi_NTV.square()
                increase_NQ.append(increase_NTV.double().sum((1, 2)).cpu().numpy())
                phi_NQF.append(project(phi_NTV).flatten(1))
        loss_N = objective.value(z0_NTV, z0_NTV, targets).double().cpu().numpy()
        yield Features(loss_N, np.stack(increase_NQ, 1), torch.stack(phi_NQF, 1))


def displacements(
    subject: Subject, layers: Layers, batch: Samples, inputs: list[Tensor], groups: range, num_outputs: int
) -> Iterator[Tensor]:
    """J δ_p [N, T, V] of every option of `groups` in order; the groups share one vmap."""
    first = subject.space.slice_of(groups.start).start
    num_rows = subject.space.slice_of(groups.stop - 1).stop - first
    taps: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for group in groups:
        own, delta = subject.space.slice_of(group), subject.variants.errors(group)
        for index in layers.uses_of(group):
            use, x = layers.uses[index], inputs[index]
            errors = errors_at(subject, use, x, delta)
            y_Q = vmap(lambda error, use=use, x=x: moved(use, x, error))(errors)  # type: ignore[misc]
            taps[index] = y_Q.new_zeros(num_rows, *y_Q.shape[1:])
            taps[index][own.start - first : own.stop - first] = y_Q
        weights.update({name: delta[name] for name in layers.direct_of(group)})
    at = (
        {index: torch.zeros_like(tap[0]) for index, tap in taps.items()},
        {name: subject.model.get_parameter(name) for name in weights},
    )

    def outputs(taps: dict[int, Tensor], weights: dict[str, Tensor]) -> Tensor:
        with tapped(layers, {}, taps):
            return run(subject, batch, weights)

    along = vmap(lambda *tangents: jvp(outputs, at, tangents)[1])
    step = max(1, HELD_ELEMENTS // num_outputs)
    for start in range(0, num_rows, step):
        part = slice(start, start + step)
        yield from along({i: tap[part] for i, tap in taps.items()}, {n: w[part] for n, w in weights.items()})
