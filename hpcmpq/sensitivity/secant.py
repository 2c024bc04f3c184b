"""Secant responses: what each option alone really does to the outputs.

    c_p  = measured loss increase of option p alone
    H_pq = φ_p · φ_q,   φ_p = Λ^½ (z(p) − z_0)

with Λ the Hessian of the loss in the outputs at the original. z(p) − z_0 is the finite displacement, so each
option's own non-linearity is in φ; only interactions are expanded to second order.
"""

from collections.abc import Iterator

import numpy as np
import torch

from hpcmpq.models.calibration import Samples
from hpcmpq.models.load import forward
from hpcmpq.probes import make_probes
from hpcmpq.sensitivity import Contribution, Subject


@torch.no_grad()
def measure(
    subject: Subject, samples: Samples, groups: range, first_sample: int
) -> Iterator[Contribution]:
    """One contribution per sample; every pass runs `samples_per_pass` samples through all options.

    The second derivative of a pair needs the responses of both, so all options are run whatever `groups` is,
    and the rows of `groups` are returned.
    """
    rows = [option.index for option in subject.space.options if option.group in groups]
    for start in range(0, len(samples), subject.samples_per_pass):
        batch = samples[start : start + subject.samples_per_pass]
        z0_NTV = forward(subject.model, batch.inputs)
        loss0_N = subject.objective.value(z0_NTV, z0_NTV, batch.targets)
        probes = make_probes(
            subject.num_probes, z0_NTV, seed=subject.seed, first_sample=first_sample + start
        )
        loss_PN, phi_NPF = [], []
        for z_NTV in option_outputs(subject, batch):
            loss_PN.append(subject.objective.value(z_NTV, z0_NTV, batch.targets) - loss0_N)
            phi_NTV = subject.objective.scaled_displacement(z_NTV - z0_NTV, z0_NTV, batch.targets)
            phi_NPF.append(probes(phi_NTV).flatten(1))
        increase_NP = torch.stack(loss_PN, 1).double().cpu().numpy()
        for n in range(len(batch)):
            feature_PF = torch.stack([phi_NF[n] for phi_NF in phi_NPF]).double()
            quad_RP = (feature_PF[rows] @ feature_PF.T).cpu().numpy()
            yield Contribution(1, float(loss0_N[n]), increase_NP[n, rows], np.ascontiguousarray(quad_RP))


def option_outputs(subject: Subject, batch: Samples) -> Iterator[torch.Tensor]:
    """z(p) of every option in index order, one forward pass each."""
    for option in subject.space.options:
        group = subject.space.groups[option.group]
        with subject.variants.assigned({group.name: option.format}):
            yield forward(subject.model, batch.inputs)
