"""Secant responses: what each option alone really does to the outputs.

    c_p  = measured loss increase of option p alone
    H_pq = φ_p · φ_q,   φ_p = Λ^½ (z(p) − z_0)

with Λ the Hessian of the loss in the outputs at the original. z(p) − z_0 is the finite displacement, so each
option's own non-linearity is in φ; only interactions are expanded to second order.
"""

from collections.abc import Iterator

import numpy as np
import torch

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.memory import large_empty
from hpcmpq.response.whole_model import WholeModel
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.probes import make_probes
from hpcmpq.sensitivity.scores import make_score
from hpcmpq.sensitivity.subject import Subject


@torch.no_grad()
def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Features]:
    """Features of the options of `groups`, one part per pass of `samples_per_pass` samples."""
    options = [option.index for option in subject.space.options if option.group in groups]
    column = {p: place for place, p in enumerate(options)}
    engine = subject.engine or WholeModel(subject.model, subject.variants)
    for start in range(0, len(samples), subject.samples_per_pass):
        batch = samples[start : start + subject.samples_per_pass]
        z0_NTV, outputs = engine.respond(batch.inputs, options)
        score = make_score(subject.objective, z0_NTV, batch.targets)
        project = make_probes(
            subject.num_probes, z0_NTV, seed=subject.seed, first_sample=first_sample + start
        )
        num_features = subject.num_probes or z0_NTV.shape[2]
        phi_NRTr = large_empty((len(batch), len(options), z0_NTV.shape[1], num_features), like=z0_NTV)
        increase_NR = np.empty((len(batch), len(options)))
        for members, z_KNTV in outputs:
            for p, z_NTV in zip(members, z_KNTV, strict=True):
                place = phi_NRTr[:, column[p]]
                if subject.num_probes is None:
                    increase_N, _ = score(z_NTV - z0_NTV, out=place)
                else:
                    increase_N, phi_NTV = score(z_NTV - z0_NTV)
                    place.copy_(project(phi_NTV))
                increase_NR[:, column[p]] = increase_N.cpu().numpy()
        loss_N = subject.objective.value(z0_NTV, z0_NTV, batch.targets)
        yield Features(loss_N.double().cpu().numpy(), increase_NR, phi_NRTr.flatten(2))
