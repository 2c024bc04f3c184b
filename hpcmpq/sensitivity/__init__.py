"""Sensitivity methods, by name: how much each option, alone and together with others, raises the loss.

To add one: write a module here with a function `measure` of the type `Measure` and one line in `METHODS`.
`tests/contracts/test_sensitivity.py` must pass: it equals its definition computed densely in float64, and its
sums add over any split of samples and groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcmpq.tables import look_up, named_by

if TYPE_CHECKING:  # which loads torch: listing the methods does without
    from hpcmpq.sensitivity.subject import Measure


@dataclass(frozen=True)
class Method:
    """A method and what it needs.

    Attributes:
        place: ``module:function``, the function of type `Measure`.
        forward_only: It runs options through an engine: in any precision, streamed, as a wavefront.
        attention: ``eager`` where it differentiates twice or forward, which fused attention kernels do not support.
        weights_alone: It does not see what a format does to activations.
    """

    place: str
    forward_only: bool = False
    attention: str | None = None
    weights_alone: bool = False

    @property
    def measure(self) -> Measure:
        """The measuring function, imported now."""
        function: Measure = named_by(self.place)
        return function


METHODS = {
    "secant": Method("hpcmpq.sensitivity.secant:measure", forward_only=True),
    "hessian": Method("hpcmpq.sensitivity.hessian:measure", attention="eager"),
    "gauss_newton": Method("hpcmpq.sensitivity.gauss_newton:measure", attention="eager"),
    "fisher": Method("hpcmpq.sensitivity.fisher:measure"),
    "empirical_fisher": Method("hpcmpq.sensitivity.empirical_fisher:measure"),
    "mpqco": Method("hpcmpq.sensitivity.empirical_fisher:measure_diagonal"),
    "first_order": Method("hpcmpq.sensitivity.first_order:measure"),
    "first_order_noise": Method("hpcmpq.sensitivity.first_order:measure_noise"),
    "pairwise": Method("hpcmpq.sensitivity.pairwise:measure"),
    "trace": Method("hpcmpq.sensitivity.hessian_trace:measure", attention="eager", weights_alone=True),
    "relative_error": Method("hpcmpq.sensitivity.data_free:measure_relative_error", weights_alone=True),
    "uniform": Method("hpcmpq.sensitivity.data_free:measure_uniform", weights_alone=True),
}


def find_method(name: str) -> Method:
    """The method called `name` in `METHODS`."""
    return look_up(METHODS, name, "sensitivity")


def forward_only_names() -> list[str]:
    """Names of the methods that run options through an engine."""
    return [name for name, method in METHODS.items() if method.forward_only]
