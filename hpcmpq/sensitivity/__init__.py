"""Sensitivity methods, by name: how much each option, alone and together with others, raises the loss.

To add one: write a module here with a function `measure` of the type `Measure` and one line in `METHODS`.
`tests/contracts/test_sensitivity.py` must pass: it equals its definition computed densely in float64, and its
sums add over any split of samples and groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import numpy as np
from torch import nn

from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import Samples
from hpcmpq.objective import Objective
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import Engine
from hpcmpq.sensitivity.features import Features
from hpcmpq.space import SearchSpace

METHODS = {
    "secant": "hpcmpq.sensitivity.secant:measure",
    "hessian": "hpcmpq.sensitivity.hessian:measure",
    "gauss_newton": "hpcmpq.sensitivity.gauss_newton:measure",
    "fisher": "hpcmpq.sensitivity.fisher:measure",
    "empirical_fisher": "hpcmpq.sensitivity.empirical_fisher:measure",
    "mpqco": "hpcmpq.sensitivity.empirical_fisher:measure_diagonal",
    "first_order": "hpcmpq.sensitivity.first_order:measure",
    "first_order_noise": "hpcmpq.sensitivity.first_order:measure_noise",
    "pairwise": "hpcmpq.sensitivity.pairwise:measure",
    "trace": "hpcmpq.sensitivity.hessian_trace:measure",
    "relative_error": "hpcmpq.sensitivity.data_free:measure_relative_error",
    "uniform": "hpcmpq.sensitivity.data_free:measure_uniform",
}

FORWARD_ONLY = {"secant"}
"""Methods that run options through an engine: in any precision, streamed, as a wavefront."""

EAGER_ATTENTION = {"hessian", "gauss_newton", "trace"}
"""Methods that differentiate twice or forward, which fused attention kernels do not support."""


WEIGHTS_ALONE = {"trace", "relative_error", "uniform"}
"""Methods that do not see what a format does to activations."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: The original model in evaluation mode.
        space: Groups and options.
        variants: Their quantized weights.
        objective: The loss.
        num_probes: Random output projections per token, or None for exact outputs.
        samples_per_pass: Samples of one forward pass.
        seed: Of the probes.
        engine: Runs options, or None for one whole forward pass each.
    """

    model: nn.Module
    space: SearchSpace
    variants: Variants
    objective: Objective
    num_probes: int | None
    samples_per_pass: int
    seed: int
    engine: Engine | None = None


@dataclass(frozen=True)
class Contribution:
    """Sums over one batch of samples for the options of the measured groups (R rows).

    Attributes:
        num_samples: Samples m of the batch.
        loss: Sum of the original's loss.
        linear_R: Sum of the loss increase of each option alone, float64 [R].
        quad_RP: Sum of second derivatives, float64 [R, P]; only columns of the same or a later group count.
        task_loss_square: Sum of the squared task loss, where the method is about loss mean-squared error.
    """

    num_samples: int
    loss: float
    linear_R: np.ndarray
    quad_RP: np.ndarray
    task_loss_square: float | None = None


Measure = Callable[[Subject, Samples, range, int], Iterator[Contribution] | Iterator[Features]]
"""measure(subject, samples, groups, first_sample): `first_sample` is the samples' place in the calibration set.

Methods of the form H = ΦᵀΦ / N give the `Features` of the options of `groups`, others `Contribution`s."""


def find_method(name: str) -> Measure:
    """The measuring function of the method called `name` in `METHODS`."""
    if name not in METHODS:
        raise UserError(f"unknown sensitivity {name!r}; known: {', '.join(METHODS)}")
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(module), attribute)
