"""Secant responses: what each option alone really does to the outputs.

    c_p  = measured loss increase of option p alone
    H_pq = φ_p · φ_q,   φ_p = Λ^½ (z(p) − z_0)

with Λ the Hessian of the loss in the outputs at the original. z(p) − z_0 is the finite displacement, so each
option's own non-linearity is in φ; only interactions are expanded to second order.

Of a mixture of experts φ is of the option with the experts that the original's routers chose, and c_p is measured
twice, so and with the option's own: the difference is what flips of choices cost (`hpcmpq.quadratic.flip_terms`).

Around a quantized model (`Subject.base`) z_0 is what that gives, and the loss still compares with the original.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from hpcmpq.models.data.samples import Samples
from hpcmpq.models.linear_head import LinearHead
from hpcmpq.models.memory import large_empty
from hpcmpq.models.outputs import forward
from hpcmpq.response.engine import ResponseEngine
from hpcmpq.response.kept_choices import KeptChoices
from hpcmpq.response.whole_model import WholeModel
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.probes import make_probes
from hpcmpq.sensitivity.projected_scores import make_projected_score
from hpcmpq.sensitivity.scores import make_score
from hpcmpq.sensitivity.subject import Subject


@torch.no_grad()
def measure(subject: Subject, samples: Samples, groups: range, first_sample: int) -> Iterator[Features]:
    """Features of the options of `groups`, one part per pass of `samples_per_pass` samples."""
    options = [option.index for option in subject.space.options if option.group in groups]
    engine = subject.engine or WholeModel(
        subject.model, subject.variants, choices=subject.choices or KeptChoices()
    )
    for start in range(0, len(samples), subject.samples_per_pass):
        batch = samples[start : start + subject.samples_per_pass]
        if subject.base is None:
            yield _measure_pass(subject, engine, batch, options, first_sample + start)
            continue
        with nullcontext() if subject.head is None else subject.head.left_out():
            original = forward(subject.model, batch.inputs)
        with subject.base():
            part = _measure_pass(subject, engine, batch, options, first_sample + start, original)
        yield part


def _measure_pass(
    subject: Subject,
    engine: ResponseEngine,
    batch: Samples,
    options: list[int],
    first_sample: int,
    original: Tensor | None = None,
) -> Features:
    """Features of options on the samples of one pass.

    Args:
        subject: What is measured.
        engine: Runs the options.
        batch: The samples.
        options: Indices of the options, R columns.
        first_sample: Their place in the calibration set.
        original: Outputs of the original, or, where the subject has a head, what it is given, if the subject's model
            is not the original itself but a quantized one, around which options are expanded.
    """

    def run() -> Features:
        if subject.head is None:
            return _from_logits(subject, engine, batch, options, first_sample, original)
        return _from_projections(subject, engine, subject.head, batch, options, first_sample, original)

    if subject.choices is None:
        return run()
    increase_NR = run().increase_NR
    with subject.choices.kept():
        kept = run()
        tokens_NLE = subject.choices.tokens(len(batch))
    return Features(kept.loss_N, increase_NR, kept.phi_NRF, kept.increase_NR, tokens_NLE)


def _from_logits(
    subject: Subject,
    engine: ResponseEngine,
    batch: Samples,
    options: list[int],
    first_sample: int,
    original_NTV: Tensor | None = None,
) -> Features:
    """Features and exact losses, from all logits of every option."""
    column = {p: place for place, p in enumerate(options)}
    z0_NTV, outputs = engine.respond(batch.inputs, options)
    score = make_score(subject.objective, z0_NTV, batch.targets, original_NTV)
    project = make_probes(subject.num_probes, z0_NTV, seed=subject.seed, first_sample=first_sample)
    num_features = subject.num_probes or z0_NTV.shape[2]
    phi_NRTr = large_empty((len(batch), len(options), z0_NTV.shape[1], num_features), like=z0_NTV)
    increase_NR = np.empty((len(batch), len(options)))
    for members, z_QNTV in outputs:
        for p, z_NTV in zip(members, z_QNTV, strict=True):
            place = phi_NRTr[:, column[p]]
            if subject.num_probes is None:
                increase_N, _ = score(z_NTV - z0_NTV, out=place)
            else:
                increase_N, phi_NTV = score(z_NTV - z0_NTV)
                place.copy_(project(phi_NTV))
            increase_NR[:, column[p]] = increase_N.cpu().numpy()
    loss_N = subject.objective.value(z0_NTV, z0_NTV if original_NTV is None else original_NTV, batch.targets)
    return Features(loss_N.double().cpu().numpy(), increase_NR, phi_NRTr.flatten(2))


def _from_projections(
    subject: Subject,
    engine: ResponseEngine,
    head: LinearHead,
    batch: Samples,
    options: list[int],
    first_sample: int,
    original_NTD: Tensor | None = None,
) -> Features:
    """Features and estimated losses from before the head; those of options that change the head, from logits."""
    by_logits = [p for p in options if _changes_head(subject, head, p)]
    before = [p for p in options if p not in by_logits]
    column = {p: place for place, p in enumerate(options)}
    with head.left_out():
        before_NTD, outputs = engine.respond(batch.inputs, before)
        loss_N, score = make_projected_score(
            head,
            subject.objective.name,
            before_NTD,
            batch.targets,
            num_probes=subject.num_probes or 1,
            loss_positions=subject.loss_positions,
            seed=subject.seed,
            first_sample=first_sample,
            original_NTD=original_NTD,
        )
        shape = (len(batch), len(options), before_NTD.shape[1], subject.num_probes or 1)
        phi_NRTr = large_empty(shape, like=before_NTD)
        increase_NR = np.empty((len(batch), len(options)))
        for members, before_QNTD in outputs:
            places = [column[p] for p in members]
            increase_QN, phi_QNTr = score(before_QNTD - before_NTD)
            phi_NRTr[:, places] = phi_QNTr.transpose(0, 1)
            increase_NR[:, places] = increase_QN.T.cpu().numpy()
    phi_NRF = phi_NRTr.flatten(2)
    if by_logits:
        original_NTV = None if original_NTD is None else head.logits(original_NTD)
        part = _from_logits(subject, engine, batch, by_logits, first_sample, original_NTV)
        places = [column[p] for p in by_logits]
        phi_NRF[:, places] = part.phi_NRF
        increase_NR[:, places] = part.increase_NR
    return Features(loss_N.cpu().numpy(), increase_NR, phi_NRF)


def _changes_head(subject: Subject, head: LinearHead, option: int) -> bool:
    group = subject.space.groups[subject.space.options[option].group]
    return head.is_changed_by(subject.model, [member.parameter for member in group.members])
