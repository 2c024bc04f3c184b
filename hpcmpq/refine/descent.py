"""Descent of the true loss: re-solve around an assignment, keep what held-out samples confirm.

Around the current assignment every neighbour, one format up or down in one group, is measured on calibration samples,
alone and together (`hpcmpq.calibrate.neighbourhood`), and what the global quadratic says of it is weighed in
(`hpcmpq.refine.combined`). The local quadratic is solved within the budgets and several trust regions, of at most r
moved groups. Held-out samples, which proposed nothing, decide: they look at the answers in
order of their measured loss on the calibration samples, and the first whose loss is lower by more than chance explains
becomes the current assignment. Look j of a round may be lucky with chance `LUCK` / 2ʲ. The descent ends when no answer
is taken, or when the evaluations are spent.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcmpq.calibrate.reduce import Reduction
from hpcmpq.errors import UserError
from hpcmpq.evaluate.statistics import t_quantile
from hpcmpq.problem import Problem
from hpcmpq.refine.neighbouring import local_problem, local_quadratic
from hpcmpq.refine.portfolio import paired
from hpcmpq.solvers import Solver

log = logging.getLogger(__name__)

LUCK = 0.16
"""Chance that a round takes an answer although none lowers the loss."""

LOCAL_SOLVE_S = 2.0
"""Solver seconds of one local problem, at most."""

RADIUS_FACTOR = 3
"""Trust regions allow all groups to move, a third of them, a ninth, ..., one."""


Answer = tuple[list[int], float]
"""A choice, one option index per group, and the change of the loss that the local quadratic predicts for it."""


def made(key: Sequence[Any], make: Callable[[], list[Answer]]) -> list[Answer]:
    """What a process that is alone makes of a key."""
    return make()


@dataclass(frozen=True)
class Measurements:
    """What the descent may measure.

    Attributes:
        around: (choice [G], options [R], on_unit) to the quadratic around the choice; on_unit is called with the
            units done and all of them.
        on_calibration: Choices to their losses on the calibration samples, float64 [N] each.
        on_held_out: The same on the held-out samples.
        max_evaluations: Neighbours and answers that may be measured.
        on_evaluation: Called with the number measured so far and the maximum.
        agreed: (key, make) to the answers of a round, which all processes that descend together take.
    """

    around: Callable[[np.ndarray, np.ndarray, Callable[[int, int], None]], Reduction]
    on_calibration: Callable[[list[np.ndarray]], list[np.ndarray]]
    on_held_out: Callable[[list[np.ndarray]], list[np.ndarray]]
    max_evaluations: int
    on_evaluation: Callable[[int, int], None]
    agreed: Callable[[Sequence[Any], Callable[[], list[Answer]]], list[Answer]] = made


@dataclass(frozen=True)
class Descent:
    """What a descent found.

    Attributes:
        choice_G: One option index per group, int64 [G].
        loss_N: Its held-out losses, float64 [N].
        evaluations: Neighbours and answers measured.
        history: Per look at an answer {`round`, `moved`, `predicted`, `measured`, `measured_stderr`, `accepted`}:
            changes of the mean loss, predicted from calibration samples and measured on held-out ones.
    """

    choice_G: np.ndarray
    loss_N: np.ndarray
    evaluations: int
    history: list[dict[str, Any]]


def descend(
    problem: Problem,
    start_G: np.ndarray,
    start_N: np.ndarray,
    measurements: Measurements,
    solver: Solver,
    shrink: float | str,
    seed: int,
    solve_s: float = LOCAL_SOLVE_S,
) -> Descent:
    """The best assignment found by measured loss.

    Args:
        problem: Budgets and constraints.
        start_G: A feasible choice, int64 [G].
        start_N: Its held-out losses, float64 [N].
        measurements: What may be measured.
        solver: Solves the local problems.
        shrink: Of the local cross terms, see `hpcmpq.solve.shrinkage`.
        seed: Of the solver.
        solve_s: Solver seconds of one local problem.
    """
    current_G, current_N, history, spent, rounds = start_G, start_N, list[dict[str, Any]](), 0, 0
    radii = trust_radii(problem.num_groups)
    while spent + len(radii) < measurements.max_evaluations:
        left = measurements.max_evaluations - spent - len(radii)
        options_R = np.sort(neighbours(problem, current_G)[:left])
        if not len(options_R):
            break

        def on_unit(done: int, units: int, before: int = spent, size: int = len(options_R)) -> None:
            measurements.on_evaluation(before + size * done // units, measurements.max_evaluations)

        expansion = measurements.around(current_G, options_R, on_unit)
        spent += len(options_R)

        def solve(
            start_G: np.ndarray = current_G, beside_R: np.ndarray = options_R, found: Reduction = expansion
        ) -> list[Answer]:
            return local_answers(problem, start_G, beside_R, found, solver, shrink, seed, solve_s)

        key = ["answers", current_G.tolist(), options_R.tolist()]
        answers = [(np.array(choice), loss) for choice, loss in measurements.agreed(key, solve)]
        if not answers:
            break
        spent += len(answers)
        fitted = measurements.on_calibration([choice_G for choice_G, _ in answers])
        order = np.argsort([loss_N.mean() for loss_N in fitted], kind="stable")
        proposed = [answers[place] for place in order]
        accepted = False
        for look, (choice_G, predicted) in enumerate(proposed, 1):
            (loss_N,) = measurements.on_held_out([choice_G])
            fall, stderr = paired(current_N, loss_N)
            accepted = is_better(loss_N, current_N, look)
            history.append(
                {
                    "round": rounds,
                    "moved": int((choice_G != current_G).sum()),
                    "predicted": float(predicted),
                    "measured": -fall,
                    "measured_stderr": stderr,
                    "accepted": accepted,
                }
            )
            if accepted:
                current_G, current_N = choice_G, loss_N
                break
        measurements.on_evaluation(spent, measurements.max_evaluations)
        rounds += 1
        if not accepted:
            break
    return Descent(current_G, current_N, spent, history)


def trust_radii(num_groups: int) -> list[int]:
    """Most groups that the answers of a round move, from all of them down to one.

    Example:
        >>> trust_radii(28)
        [28, 9, 3, 1]
    """
    radii = [num_groups]
    while radii[-1] > 1:
        radii.append(max(1, radii[-1] // RADIUS_FACTOR))
    return radii


def is_better(new_N: np.ndarray, old_N: np.ndarray, look: int) -> bool:
    """Whether the mean loss fell by more than chance explains at look 1, 2, ..., by paired differences.

    One sample does not tell what chance explains, and few tell it less well: hence Student's t.
    """
    if len(new_N) < 2:
        return False
    fall, stderr = paired(old_N, new_N)
    return fall > 0 and fall >= t_quantile(1.0 - LUCK / 2**look, len(new_N) - 1) * stderr


def check_held_out(num_held_out: int, what: str) -> None:
    """Refuse a stage without held-out samples; warn of one, which tells no gain from chance."""
    if not num_held_out:
        raise UserError(
            f"{what} needs held-out samples: set calibration.held_out to 2 or more and plan again"
        )
    if num_held_out == 1:
        log.warning(
            "%s measures, but keeps no change: one held-out sample does not tell a gain from chance; set "
            "calibration.held_out to 2 or more and plan again",
            what,
        )


def neighbours(problem: Problem, current_G: np.ndarray) -> np.ndarray:
    """Allowed options one format up or down, int64 [R], those of groups with the largest losses first."""
    num_options = len(problem.linear_P)
    allowed_P = np.ones(num_options, bool) if problem.allowed_P is None else problem.allowed_P
    size_G = np.bincount(problem.group_P)
    found: list[int] = []
    for group in np.argsort(-np.abs(problem.linear_P[current_G]), kind="stable"):
        first = problem.offset_G[group]
        beside = (current_G[group] - 1, current_G[group] + 1)
        found += [p for p in beside if first <= p < first + size_G[group] and allowed_P[p]]
    return np.array(found, dtype=np.int64)


def local_answers(
    problem: Problem,
    current_G: np.ndarray,
    options_R: np.ndarray,
    expansion: Reduction,
    solver: Solver,
    shrink: float | str,
    seed: int,
    solve_s: float = LOCAL_SOLVE_S,
) -> list[Answer]:
    """What the local problem says to move to within each trust region, each choice once."""
    linear_P, quad_PP = local_quadratic(problem, current_G, options_R, expansion, shrink)
    answers: dict[bytes, Answer] = {}
    for radius in trust_radii(problem.num_groups):
        local = local_problem(problem, current_G, options_R, linear_P, quad_PP, radius)
        found = solver.solve(local, time_limit_s=solve_s, seed=seed, hint_G=current_G)
        if found.choice_G is not None and found.objective is not None and found.objective < 0:
            answers.setdefault(found.choice_G.tobytes(), (found.choice_G.tolist(), float(found.objective)))
    return list(answers.values())
