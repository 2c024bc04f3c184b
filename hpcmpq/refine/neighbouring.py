"""The problem of moving from an assignment to its neighbours: measured changes, weighed, and trust regions."""

import logging
from dataclasses import replace

import numpy as np

from hpcmpq.calibrate.reduce import Reduction
from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.refine.combined import combined
from hpcmpq.solve.shrinkage import shrunk

_log = logging.getLogger(__name__)


def local_quadratic(
    problem: Problem, current_G: np.ndarray, options_R: np.ndarray, expansion: Reduction, shrink: float | str
) -> tuple[np.ndarray, np.ndarray]:
    """c [P] and H [P, P] around a choice, zero for options that were not measured.

    Changes of the loss are combined with what the global quadratic says of them, cross terms are shrunk.
    """
    beside_R = current_G[problem.group_P[options_R]]  # the option that each would replace
    slope_P = problem.linear_P + problem.quad_PP[:, current_G].sum(1)
    changes = combined(
        expansion.model.linear_P,
        expansion.model.stderr_linear_P,
        slope_P[options_R] - slope_P[beside_R],
        np.abs(problem.linear_P[options_R]) + np.abs(problem.linear_P[beside_R]),
    )
    _log.info(
        "moves: measured and predicted changes agree by %.2f times the prediction, measurements weigh %.2f",
        changes.ratio,
        changes.weight_R.mean(),
    )
    sizes = replace(
        expansion.model,
        linear_P=0.5 * expansion.diagonal_P,  # the options' own size, to which cross terms are compared
        stderr_linear_P=np.zeros(len(options_R)),
    )
    linear_P, quad_PP = np.zeros_like(problem.linear_P), np.zeros_like(problem.quad_PP)
    linear_P[options_R] = changes.change_R
    quad_PP[np.ix_(options_R, options_R)] = shrunk(sizes, shrink).quad_PP
    return linear_P, quad_PP


def local_problem(
    problem: Problem,
    current_G: np.ndarray,
    options_R: np.ndarray,
    linear_P: np.ndarray,
    quad_PP: np.ndarray,
    radius: int,
) -> Problem:
    """The problem of moving at most `radius` groups to measured neighbours; its objective is ΔL."""
    allowed_P, moved_P = np.zeros(len(linear_P), dtype=bool), np.ones(len(linear_P))
    allowed_P[options_R] = True
    allowed_P[current_G] = True
    moved_P[current_G] = 0.0
    moves = Budget(Cost("moves", "groups", moved_P), float(radius))
    return replace(
        problem,
        linear_P=linear_P,
        quad_PP=quad_PP,
        allowed_P=allowed_P,
        budgets=(*problem.budgets, moves),
        constant=0.0,
    )
