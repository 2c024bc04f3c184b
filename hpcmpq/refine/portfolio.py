"""A portfolio of assignments, of which the one with the lowest loss measured on held-out samples is the answer.

Cross terms are a noisy estimate, and a solver that may combine thousands of them finds those whose noise looks best.
So the solver's answer is measured beside what it would be without cross terms, with cross terms as measured, within
slightly smaller budgets, and beside the best uniform formats: a few forward passes decide what no formula can. The
bound stays that of the objective which the solver minimised.

At few bits losses add up faster than any quadratic says, since each option was measured in a model whose other groups
are as they were. So there are answers, too, for which formats narrower than a uniform one of the same bits lose
several times what was measured.

Axis letters: G groups, N samples, B batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpcmpq.formats import FORMATS
from hpcmpq.problem import Problem
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solvers import OF_FULL_MODEL, make_solver, on_host
from hpcmpq.space import SearchSpace

SOLVE_S = 5.0
"""Solver seconds of a candidate, at most."""

TIGHTER = 0.97
"""Factor on every budget of the candidate that is solved within smaller ones."""

RAISED = (1.5, 3.0, 6.0)
"""Factors on what narrow formats lose; the first also with cross terms, the others without."""

SOLVED, DIAGONAL, AS_MEASURED, SMALLER = "solved", "diagonal", "as measured", "smaller budgets"
NARROW = "narrow formats"


@dataclass(frozen=True)
class Candidate:
    """An assignment that meets the budgets.

    Attributes:
        name: Where it comes from; of a uniform one its format.
        choice_G: One option index per group, int64 [G].
    """

    name: str
    choice_G: np.ndarray


def make_candidates(
    solved_G: np.ndarray,
    settings: SolverConfig,
    problem_of: Callable[[SolverConfig], Problem],
    uniforms: dict[str, np.ndarray],
    narrow_P: np.ndarray,
) -> list[Candidate]:
    """The solved assignment first, then others that meet the same budgets, each choice once.

    Args:
        solved_G: The solver's answer, int64 [G].
        settings: It was solved with.
        problem_of: The problem under changed settings.
        uniforms: {format: choice} of all uniform assignments.
        narrow_P: Narrow options, bool [P], see `narrow_options`.
    """
    problem = problem_of(settings)
    found = [Candidate(SOLVED, solved_G)]
    variants = {DIAGONAL: replace(settings, drop_cross_terms=True)}
    if settings.name in OF_FULL_MODEL and not settings.drop_cross_terms:
        variants[AS_MEASURED] = replace(settings, shrink=0.0)
    problems = {name: problem_of(changed) for name, changed in variants.items()}
    problems[SMALLER] = replace(
        problem,
        budgets=tuple(replace(b, limit=b.limit * (TIGHTER if b.limit > 0 else 1.0)) for b in problem.budgets),
    )
    problems[f"{NARROW} × {RAISED[0]:g}"] = raised(problem, narrow_P, RAISED[0])
    for factor in RAISED:
        problems[f"{NARROW} × {factor:g}, diagonal"] = raised(problems[DIAGONAL], narrow_P, factor)
    for name, own in problems.items():
        choice_G = _solution(own, settings, solved_G if name != SMALLER else None)
        if choice_G is not None:
            found.append(Candidate(name, choice_G))
    found += [Candidate(name, uniforms[name]) for name in widest_uniforms(problem, uniforms)]
    kept = {candidate.choice_G.tobytes(): candidate for candidate in reversed(found)}
    return [c for c in found if kept[c.choice_G.tobytes()] is c and problem.is_feasible(c.choice_G)]


def widest_uniforms(problem: Problem, uniforms: dict[str, np.ndarray]) -> list[str]:
    """All uniform formats of the largest width that the problem allows: a measurement says which is best."""
    feasible = [name for name, choice_G in uniforms.items() if problem.is_feasible(choice_G)]
    widest = max((FORMATS[name].num_bits for name in feasible), default=0)
    return [name for name in feasible if FORMATS[name].num_bits == widest]


def raised(problem: Problem, narrow_P: np.ndarray, factor: float) -> Problem:
    """The problem in which narrow options, bool [P], lose `factor` times as much, as if their errors were larger."""
    root_P = np.sqrt(np.where(narrow_P, factor, 1.0))
    return replace(
        problem, linear_P=root_P**2 * problem.linear_P, quad_PP=root_P[:, None] * problem.quad_PP * root_P
    )


def narrow_options(space: SearchSpace, choice_G: np.ndarray) -> np.ndarray:
    """Options narrower than the narrowest uniform format that has as many bits as a choice, bool [P].

    A choice of 2.5 bits per weight has narrow options of two bits, one of 3.0 bits too, one of 3.5 bits of two and
    three. Groups without weights, whose activations are rounded, do not count.
    """
    width_P = np.array([FORMATS[option.format].num_bits for option in space.options], dtype=np.float64)
    numel_G = np.array([group.numel for group in space.groups], dtype=np.float64)
    average = float(width_P[choice_G] @ numel_G / max(numel_G.sum(), 1.0))
    return np.asarray(width_P < width_P[width_P >= average - 1e-6].min())


def lowest(losses_N: Sequence[np.ndarray]) -> int:
    """The place of the lowest mean loss; the first of several."""
    return int(np.argmin([float(loss_N.mean()) for loss_N in losses_N]))


def describe_candidates(
    candidates: Sequence[Candidate],
    losses_N: Sequence[np.ndarray],
    chosen: int,
    quadratic: QuadraticModel,
    assignment_of: Callable[[np.ndarray], dict[str, str]],
) -> list[dict[str, Any]]:
    """Values of `portfolio` in `solution.json`: predicted and measured losses, and differences to the chosen one."""
    values = []
    for place, (candidate, loss_N) in enumerate(zip(candidates, losses_N, strict=True)):
        difference, stderr = paired(loss_N, losses_N[chosen])
        values.append(
            {
                "name": candidate.name,
                "chosen": place == chosen,
                "predicted_loss": quadratic.predicted_loss(candidate.choice_G),
                "held_out_loss": float(loss_N.mean()),
                "difference": difference,
                "difference_stderr": stderr,
                "assignment": assignment_of(candidate.choice_G),
            }
        )
    return values


def paired(loss_N: np.ndarray, other_N: np.ndarray) -> tuple[float, float]:
    """Mean of loss - other over samples, and its standard error; 0 with one sample."""
    return mean_and_stderr(loss_N - other_N)


def mean_and_stderr(value_N: np.ndarray) -> tuple[float, float]:
    """Mean over samples, and its standard error; 0 with one sample."""
    stderr = value_N.std(ddof=1) / len(value_N) ** 0.5 if len(value_N) > 1 else 0.0
    return float(value_N.mean()), float(stderr)


def interactions(
    candidates: Sequence[Candidate], losses_N: Sequence[np.ndarray], quadratic: QuadraticModel
) -> dict[str, Any]:
    """What cross terms did: their share of the predicted increase, the groups they changed, what that won.

    `share_stderr` is over calibration batches, with cross
    terms as measured, or None where there are fewer than two.
    """
    by_name = {candidate.name: place for place, candidate in enumerate(candidates)}
    solved_G = candidates[by_name[SOLVED]].choice_G
    cross = quadratic.predicted_loss(solved_G) - quadratic.loss0 - float(quadratic.linear_P[solved_G].sum())
    increase = quadratic.predicted_loss(solved_G) - quadratic.loss0
    batches = [0.5 * quad_PP[np.ix_(solved_G, solved_G)].sum() for quad_PP in quadratic.batch_quad_BPP]
    known = increase > 0
    spread = float(np.std(batches, ddof=1) / len(batches) ** 0.5) if len(batches) > 1 else None
    if DIAGONAL in by_name:
        diagonal = by_name[DIAGONAL]
        changed = int((candidates[diagonal].choice_G != solved_G).sum())
        fall, stderr = paired(losses_N[diagonal], losses_N[by_name[SOLVED]])
    else:  # the same assignment with and without cross terms
        changed, fall, stderr = 0, 0.0, 0.0
    return {
        "share": cross / increase if known else None,
        "share_stderr": spread / increase if known and spread is not None else None,
        "groups_changed": changed,
        "num_groups": len(solved_G),
        "lowered_by": fall,
        "lowered_by_stderr": stderr,
    }


def _solution(problem: Problem, settings: SolverConfig, hint_G: np.ndarray | None) -> np.ndarray | None:
    solver = make_solver(on_host(settings.name))
    limit = min(settings.time_limit_s, SOLVE_S)
    return solver.solve(problem, time_limit_s=limit, seed=settings.seed, hint_G=hint_G).choice_G
