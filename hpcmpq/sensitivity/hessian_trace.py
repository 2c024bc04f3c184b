"""Hessian trace times error energy, as HAWQ-V2 and V3 (arXiv 1911.03852, 2011.10680).

    c_p = ½ · tr(H_g) / numel_g · ‖δ_p‖²

with H_g the group's block of the Hessian; its trace is estimated without bias by Hutchinson's E[εᵀH_gε] over random
signs ε. The factor ½ puts c in units of the loss, were errors spread over all directions alike. H is zero.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.outputs import forward
from hpcmpq.models.weights import Tensors
from hpcmpq.sensitivity.draws import generator_of
from hpcmpq.sensitivity.subject import Contribution, Subject
from hpcmpq.sensitivity.taps import check_differentiable, run

DEFAULT_PROBES = 8
"""Random directions per group where the config does not set `sensitivity.probes`."""


def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Contribution]:
    """One contribution per pass. The directions are the same for all samples, so sums over samples add up."""
    check_differentiable(subject, samples[:1])
    for batch in samples.passes(subject.samples_per_pass):
        with torch.no_grad():
            z0_NTV = forward(subject.model, batch.inputs)
            loss = float(subject.objective.value(z0_NTV, z0_NTV, batch.targets).sum())
        linear = []
        for group in groups:
            trace = float(curvatures(subject, batch, z0_NTV, directions(subject, group)).mean())
            energy_Q = error_energy(subject, group)
            linear.append(0.5 * trace / subject.space.groups[group].numel * energy_Q)
        linear_R = np.concatenate(linear)
        yield Contribution(len(batch), loss, linear_R, np.zeros((len(linear_R), subject.space.num_options)))


def directions(subject: Subject, group: int) -> Tensors:
    """Random signs in the shape of a group's weights, [r, *shape]."""
    count = subject.num_probes or DEFAULT_PROBES
    generator = generator_of(subject.seed * 1_000_003 + group)
    return {
        name: (2 * torch.randint(0, 2, (count, *weight.shape), generator=generator) - 1).to(weight)
        for name, weight in subject.variants.originals(subject.space.groups[group]).items()
    }


def curvatures(subject: Subject, batch: Samples, z0_NTV: Tensor, direction_r: Tensors) -> Tensor:
    """εᵀHε of every direction, summed over the batch, [r]."""
    own = {name: subject.model.get_parameter(name) for name in direction_r}

    def loss(weights: Tensors) -> Tensor:
        z_NTV = run(subject, batch, weights)
        return subject.objective.value(z_NTV, z0_NTV, batch.targets).sum()

    def curvature(direction: Tensors) -> Tensor:
        hvp = jvp(grad(loss), (own,), (direction,))[1]
        return sum((hvp[name] * direction[name]).sum() for name in own)  # type: ignore[return-value]

    return vmap(curvature, chunk_size=1)(direction_r)


def error_energy(subject: Subject, group: int) -> np.ndarray:
    """‖δ_p‖² of every option of a group, float64 [Q]."""
    squares = [
        error_Q.double().square().flatten(1).sum(1) for error_Q in subject.variants.errors(group).values()
    ]
    return torch.stack(squares).sum(0).cpu().numpy()
