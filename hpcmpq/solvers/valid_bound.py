"""A proven bound beside the objective of a feasible choice: only rounding may put it above."""

import numpy as np

from hpcmpq.cross_terms import size_among
from hpcmpq.errors import InvalidBound
from hpcmpq.problem import Cost, Problem

EXCESS = 1e-9
"""Share of the summands' size by which rounding may lift a bound above an objective; gaps are proven to 1e-6."""


def lowered(bound: float, objective: float, size: float) -> float:
    """The bound, or the objective of a feasible choice where rounding has put the bound above it.

    Args:
        bound: Said to be at most the objective of every feasible choice.
        objective: Of a feasible choice.
        size: Sum of the absolute values of the summands of the objective.

    Raises:
        InvalidBound: If the bound exceeds the objective by more than `EXCESS` of the size.

    Example:
        >>> lowered(3.0 + 1e-12, 3.0, 5.0)
        3.0
        >>> lowered(3.1, 3.0, 5.0)
        Traceback (most recent call last):
        ...
        hpcmpq.errors.InvalidBound: 3.1 was proven as a lower bound, but a feasible assignment reaches 3: the \
solver is wrong, not the input; choose another with --solver and please report this
    """
    if bound - objective > EXCESS * size + 1e-280:
        raise InvalidBound(
            f"{bound:.10g} was proven as a lower bound, but a feasible assignment reaches {objective:.10g}: the "
            "solver is wrong, not the input; choose another with --solver and please report this"
        )
    return min(bound, objective)


def objective_size(problem: Problem, choice_G: np.ndarray) -> float:
    """Sum of the absolute values of the summands of a choice's objective."""
    size = abs(problem.constant) + float(np.abs(problem.linear_P[choice_G]).sum())
    return size + 0.5 * size_among(problem.quad_PP, choice_G)


def cost_size(cost: Cost, choice_G: np.ndarray, offset_G: np.ndarray) -> float:
    """Sum of the absolute values of the summands of a choice's cost."""
    size = abs(cost.constant) + float(np.abs(cost.linear_P[choice_G]).sum())
    for term in cost.terms:
        groups = np.array(term.groups)
        size += abs(float(term.table[tuple(choice_G[groups] - offset_G[groups])]))
    return size


def rounding(problem: Problem, choice_G: np.ndarray) -> float:
    """What the objective of a choice is uncertain by as a sum of floating-point numbers."""
    return 16.0 * float(np.finfo(np.float64).eps) * objective_size(problem, choice_G) + 1e-280
