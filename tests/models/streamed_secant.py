"""Secant features of a small model, in memory or streamed."""

import dataclasses

from hpcmpq.formats import Quantizer
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity.secant import measure
from hpcmpq.sensitivity.subject import Subject


def make_subject(model, space, streamed=None):
    variants = Variants(model, space, Quantizer(group_size=64, range="absmax"), streamed=streamed)
    return Subject(model, space, variants, OBJECTIVES["kl"], None, 1, 0)


def secant(model, space, samples, streamed=None, **options):
    subject = make_subject(model, space, streamed)
    engine = make_engine("auto", subject.variants, samples[:1].inputs, **options)
    subject = dataclasses.replace(subject, engine=engine)
    return next(iter(measure(subject, samples, range(len(space.groups)), 0)))
