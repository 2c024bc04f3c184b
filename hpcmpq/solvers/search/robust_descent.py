"""Descent on mean + k·std of batches: moves of one group or two, while they lower it and keep the budgets.

Rounds of reweighted problems (`hpcmpq.solvers.robust`) end at a choice that is best for some weights of the batches,
which need not be the best for its own: a move away from it may still lower the robust objective.

Axis letters: B batches, P options, R rows (some options), G groups.
"""

import time

import numpy as np

from hpcmpq.problem import Problem

TRIES = 500
"""Moves of a step that are looked at, best first, until one keeps the budgets."""

ROW_ELEMENTS = 2**24
"""Numbers in memory at once."""


def descend(
    problem: Problem,
    batch_linear_BP: np.ndarray,
    batch_quad_BPP: np.ndarray,
    choice_G: np.ndarray,
    deviations: float,
    deadline: float,
) -> np.ndarray:
    """A feasible choice whose mean + deviations · std is no larger than that of the feasible `choice_G`.

    Args:
        problem: Groups, budgets, ties and forbidden options.
        batch_linear_BP: c of every batch, float64 [B, P].
        batch_quad_BPP: H of every batch, symmetric float64 [B, P, P], zero inside groups.
        choice_G: Option index of every group.
        deviations: k ≥ 0.
        deadline: Of `time.perf_counter`, after which no further step begins.
    """
    choice_G = choice_G.copy()
    group_P = problem.group_P
    while time.perf_counter() < deadline:
        now_P = choice_G[group_P]
        field_BP = batch_linear_BP + batch_quad_BPP[:, :, choice_G].sum(axis=2)
        value_B = 0.5 * (batch_linear_BP + field_BP)[:, choice_G].sum(axis=1)
        step_BP = field_BP - field_BP[:, now_P]
        least = mean_and_spread(value_B, deviations)
        found: list[tuple[float, int, int]] = []
        size = max(1, ROW_ELEMENTS // step_BP.size)
        for first in range(0, len(group_P), size):
            rows = slice(first, first + size)
            value_RP = mean_and_spread(
                value_B[:, None, None] + _moves(batch_quad_BPP, step_BP, now_P, group_P, rows), deviations
            )
            better = np.argwhere(value_RP < least - 1e-12 * abs(least))
            found += [(float(value_RP[r, q]), first + int(r), int(q)) for r, q in better.tolist()]
        for _, p, q in sorted(found)[:TRIES]:
            trial_G = choice_G.copy()
            trial_G[group_P[q]] = q
            trial_G[group_P[p]] = p  # last: where both are of one group the move is p alone
            if problem.is_feasible(trial_G):
                choice_G = trial_G
                break
        else:
            return choice_G
    return choice_G


def _moves(
    quad_BPP: np.ndarray, step_BP: np.ndarray, now_P: np.ndarray, group_P: np.ndarray, rows: slice
) -> np.ndarray:
    """Change of every batch when options p of `rows` and q are taken, [B, R, P]; p alone where they share a group."""
    here, now_R = quad_BPP[:, rows], now_P[rows]
    cross_BRP = here - here[:, :, now_P] - quad_BPP[:, now_R] + quad_BPP[:, now_R][:, :, now_P]
    both_BRP = step_BP[:, rows, None] + step_BP[:, None, :] + cross_BRP
    alone = group_P[rows, None] == group_P[None, :]
    return np.where(alone[None], step_BP[:, rows, None], both_BRP)


def mean_and_spread(value_B: np.ndarray, deviations: float) -> np.ndarray:
    """Mean + deviations · sample standard deviation over the first axis, that of the batches."""
    return value_B.mean(axis=0) + deviations * value_B.std(axis=0, ddof=1)
