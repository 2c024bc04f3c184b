"""Measured pairs, as CLADO (arXiv 2307.05657): P²/2 forward passes. The oracle of the other methods.

c_p  = L(p) − L_0
H_pq = L(p, q) + L_0 − L(p) − L(q)
"""

from collections.abc import Iterator

import numpy as np
import torch

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.outputs import forward
from hpcmpq.sensitivity.subject import Contribution, Subject


@torch.no_grad()
def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Contribution]:
    """One contribution per sample for the rows of `groups`; columns are later groups."""
    space, num_options = subject.space, subject.space.num_options
    rows = [option for option in space.options if option.group in groups]
    for batch in samples.passes(subject.samples_per_pass):
        z0_NTV = forward(subject.model, batch.inputs)

        def losses(
            assignment: dict[str, str], batch: Samples = batch, z0_NTV: torch.Tensor = z0_NTV
        ) -> np.ndarray:
            with subject.variants.assigned(assignment):
                z_NTV = forward(subject.model, batch.inputs)
            return subject.objective.value(z_NTV, z0_NTV, batch.targets).double().cpu().numpy()

        loss0_N = losses({})
        name_P = [space.groups[option.group].name for option in space.options]
        single_PN = np.zeros((num_options, len(batch)))
        for option in space.options[rows[0].index :]:
            single_PN[option.index] = losses({name_P[option.index]: option.format}) - loss0_N
        quad_NRP = np.zeros((len(batch), len(rows), num_options))
        for r, row in enumerate(rows):
            for column in space.options[space.slice_of(row.group).stop :]:
                pair_N = (
                    losses({name_P[row.index]: row.format, name_P[column.index]: column.format}) - loss0_N
                )
                quad_NRP[:, r, column.index] = pair_N - single_PN[row.index] - single_PN[column.index]
        for n in range(len(batch)):
            linear_R = single_PN[[row.index for row in rows], n]
            yield Contribution(1, float(loss0_N[n]), linear_R, quad_NRP[n])
