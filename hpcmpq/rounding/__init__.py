"""Error-compensated rounding: codes of every option from the original's inputs, and of a solution from its own.

How a weight is rounded again at a solution, by name. To add a way: write a function of the type of
`RoundingMethod.fit` and one line in `METHODS`; `tests/rounding/test_reround.py` compares each with its definition,
computed densely another way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcmpq.tables import look_up, named_by

if TYPE_CHECKING:  # which loads torch: listing the methods does without
    from hpcmpq.rounding.methods import Fit


@dataclass(frozen=True)
class RoundingMethod:
    """A method and what it needs.

    Attributes:
        place: ``module:function``, the function of type `Fit`.
        strength: By default.
        needs_original: It compares with the outputs that the original gives.
    """

    place: str
    strength: float = 0.0
    needs_original: bool = False

    @property
    def fit(self) -> Fit:
        """The function that makes what rows are rounded by, imported now."""
        function: Fit = named_by(self.place)
        return function


METHODS = {
    "gptq": RoundingMethod("hpcmpq.rounding.methods:gptq"),
    "gptaq": RoundingMethod("hpcmpq.rounding.methods:gptaq", strength=0.25, needs_original=True),
    "qep": RoundingMethod("hpcmpq.rounding.methods:qep", strength=0.5, needs_original=True),
}

BEST = "qep"
"""What is done where no method is named: the better of two on a real model, see docs/export.md."""


def find_rounding_method(name: str) -> RoundingMethod:
    """The method called `name` in `METHODS`."""
    return look_up(METHODS, name, "rounding method")
