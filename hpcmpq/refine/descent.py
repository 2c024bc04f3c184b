"""True-loss descent: local re-solves around an assignment, kept only where the measured loss really falls.

Around the current assignment x every neighbour, one format up or down in one group, is measured: its
*neighbour secant* d_p = L(x with p) − L(x). The local model of a move to several neighbours adds the
interactions that calibration measured,

    ΔL ≈ Σ_p d_p + ½ Σ_pq (H_pq − H_pb − H_aq + H_ab),      a, b the current options of p's and q's groups,

and is solved within the budgets and a trust region of at most r moved groups, which shrinks when a move
fails.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.solvers import Solver

MIN_T = 1.0
"""A fall of the mean loss counts as real above this many standard errors of the paired difference."""

LOCAL_SOLVE_S = 2.0
"""Solver seconds of one local problem."""


@dataclass
class TrueLoss:
    """Measured losses of assignments on fixed samples; each is measured once.

    Attributes:
        measure: From one option index per group to per-sample losses, float64 [N].
        max_evaluations: Assignments that may be measured.
        on_evaluation: Called with the number measured so far and the maximum.
    """

    measure: Callable[[np.ndarray], np.ndarray]
    max_evaluations: int
    on_evaluation: Callable[[int, int], None]
    known: dict[bytes, np.ndarray] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Evaluations that may still be spent."""
        return self.max_evaluations - len(self.known)

    def __call__(self, choice_G: np.ndarray) -> np.ndarray:
        """Per-sample losses of a choice, float64 [N]."""
        key = choice_G.tobytes()
        if key not in self.known:
            self.known[key] = self.measure(choice_G)
            self.on_evaluation(len(self.known), self.max_evaluations)
        return self.known[key]


def descend(
    problem: Problem,
    start_G: np.ndarray,
    others: list[np.ndarray],
    true_loss: TrueLoss,
    solver: Solver,
    seed: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The best assignment found by measured loss, and what was tried.

    Args:
        problem: Budgets, constraints and calibrated interactions.
        start_G: A feasible choice, int64 [G].
        others: Further feasible choices that are measured first, such as uniform ones.
        true_loss: Measures; the descent ends when its evaluations are spent.
        solver: Solves the local problems.
        seed: Of the solver.

    Returns:
        The choice, and per try {`moved`, `predicted`, `measured`, `accepted`}, changes of the mean loss.
    """
    current_G, history = start_G, list[dict[str, Any]]()
    for other_G in others:
        if true_loss.left > 0 and is_better(true_loss(other_G), true_loss(current_G)):
            current_G = other_G
    while true_loss.left > 0:
        candidate_P, secant_P = neighbour_secants(problem, current_G, true_loss)
        radius = max(1, problem.num_groups // 2)
        while radius >= 1 and true_loss.left > 0:
            local = local_problem(problem, current_G, candidate_P, secant_P, radius)
            found = solver.solve(local, time_limit_s=LOCAL_SOLVE_S, seed=seed, hint_G=current_G)
            if found.choice_G is None or found.objective is None or found.objective >= 0:
                return current_G, history
            before_N, after_N = true_loss(current_G), true_loss(found.choice_G)
            moved = int((found.choice_G != current_G).sum())
            accepted = is_better(after_N, before_N)
            history.append(
                {
                    "moved": moved,
                    "predicted": float(found.objective),
                    "measured": float(after_N.mean() - before_N.mean()),
                    "accepted": accepted,
                }
            )
            if accepted:
                current_G = found.choice_G
                break
            radius = min(radius, moved) // 2
        else:
            return current_G, history
    return current_G, history


def is_better(new_N: np.ndarray, old_N: np.ndarray) -> bool:
    """Whether the mean loss fell by more than `MIN_T` standard errors of the paired differences."""
    fall_N = old_N - new_N
    stderr = fall_N.std(ddof=1) / np.sqrt(len(fall_N)) if len(fall_N) > 1 else 0.0
    return bool(fall_N.mean() > 0 and fall_N.mean() >= MIN_T * stderr)


def neighbour_secants(
    problem: Problem, current_G: np.ndarray, true_loss: TrueLoss
) -> tuple[np.ndarray, np.ndarray]:
    """Measured change of the loss for every neighbour of a choice, as far as evaluations last.

    Returns:
        candidate_P, bool [P]: the current options and the measured neighbours; secant_P, float64 [P]: d.
    """
    num_options = len(problem.linear_P)
    allowed_P = np.ones(num_options, bool) if problem.allowed_P is None else problem.allowed_P
    candidate_P, secant_P = np.zeros(num_options, dtype=bool), np.zeros(num_options)
    candidate_P[current_G] = True
    base = true_loss(current_G).mean()
    group_size_G = np.bincount(problem.group_P)
    for group in np.argsort(-np.abs(problem.linear_P[current_G]), kind="stable"):
        first = problem.offset_G[group]
        for option in (current_G[group] - 1, current_G[group] + 1):
            inside = first <= option < first + group_size_G[group]
            if inside and allowed_P[option] and true_loss.left > 1:
                moved_G = current_G.copy()
                moved_G[group] = option
                candidate_P[option] = True
                secant_P[option] = true_loss(moved_G).mean() - base
    return candidate_P, secant_P


def local_problem(
    problem: Problem, current_G: np.ndarray, candidate_P: np.ndarray, secant_P: np.ndarray, radius: int
) -> Problem:
    """The problem of moving at most `radius` groups to measured neighbours; its objective is ΔL."""
    current_P = current_G[problem.group_P]
    quad = problem.quad_PP
    mixed_PP = quad - quad[:, current_P] - quad[current_P, :] + quad[np.ix_(current_P, current_P)]
    mixed_PP[problem.group_P[:, None] == problem.group_P[None, :]] = 0.0
    moved_P = np.ones(len(current_P))
    moved_P[current_G] = 0.0
    moves = Budget(Cost("moves", "groups", moved_P), float(radius))
    return replace(
        problem,
        linear_P=secant_P,
        quad_PP=mixed_PP,
        allowed_P=candidate_P,
        budgets=(*problem.budgets, moves),
        constant=0.0,
    )
