"""The best choice so far of a proof, and what is still worth looking for.

Axis letters: G groups.
"""

from dataclasses import dataclass

import numpy as np

from hpcmpq.cross_terms import size_among
from hpcmpq.solvers.compact.compact import Compact

PROOF = 4e-7
"""Choices better by less than this, relative, are not looked for: under the 1e-6 that counts as optimal."""


@dataclass
class Incumbent:
    """The best choice so far, of the original problem's groups.

    Attributes:
        choice_G: Original choice.
        objective: In units of the compact objective of the root.
        zero: Where the original objective is zero in that unit.
        size: Of the first choice's summands, in that unit.
    """

    choice_G: np.ndarray
    objective: float
    zero: float
    size: float

    @property
    def cutoff(self) -> float:
        """Only choices below this are of interest."""
        return self.objective - PROOF * abs(self.objective - self.zero)


def first_incumbent(root: Compact, choice_G: np.ndarray) -> Incumbent:
    """The incumbent of a feasible compact choice."""
    size = float(np.abs(root.linear_P[choice_G]).sum())
    size += 0.5 * size_among(root.quad_PP, choice_G)
    zero = -root.original_objective(0.0) / root.scale
    return Incumbent(root.expand(choice_G), root.objective(choice_G), zero, size)
