"""Sensitivity methods, by name: how much each option, alone and together with others, raises the loss.

To add one: write a module here with a function `measure` of the type `Measure` and one line in `METHODS`.
`tests/contracts/test_sensitivity.py` must pass: it equals its definition computed densely in float64, and its
sums add over any split of samples and groups.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hpcmpq.errors import UserError

if TYPE_CHECKING:  # which loads torch: listing the methods does without
    from hpcmpq.sensitivity.subject import Measure

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


def find_method(name: str) -> Measure:
    """The measuring function of the method called `name` in `METHODS`."""
    if name not in METHODS:
        raise UserError(f"unknown sensitivity {name!r}; known: {', '.join(METHODS)}")
    module, attribute = METHODS[name].split(":")
    return getattr(import_module(module), attribute)
