"""Minimise mean + k·std over calibration batches, with a valid bound.

Every batch b has its own model f_b(x) = c_b·x + ½ xᵀH_b x. With B batches, mean m(x) and sample deviation
s(x) = (Σ_b (f_b − m)² / (B − 1))^½,

    m(x) + k s(x) = max over u with Σ u_b = 0 and ‖u‖ ≤ 1 of  Σ_b (1/B + k u_b / √(B − 1)) f_b(x),

because the maximiser is u = (f − m) / ‖f − m‖. For any fixed u the right-hand side is one quadratic whose
minimum, and so whose proven bound, is at most the robust optimum. The method alternates: solve the quadratic
for u, evaluate the robust objective at the solution, move u towards the deviations there. The best choice and
the best bound over all rounds are kept, and moves of one or two groups lower the choice's own objective further
(`hpcmpq.solvers.search.robust_descent`). The bound is valid, the gap need not close (max and min over
one-hot x do not commute).

Axis letters: B batches, P options, G groups.
"""

import time
from dataclasses import replace

import numpy as np

from hpcmpq.problem import Problem, Solution, Termination
from hpcmpq.solvers.quadratic import QuadraticSolver
from hpcmpq.solvers.search.robust_descent import descend, mean_and_spread
from hpcmpq.solvers.valid_bound import lowered


def robust_value(
    batch_linear_BP: np.ndarray, batch_quad_BPP: np.ndarray, choice_G: np.ndarray, deviations: float
) -> float:
    """Mean + deviations · sample standard deviation of the batches' objectives at a choice."""
    values_B = batch_values(batch_linear_BP, batch_quad_BPP, choice_G)
    return float(mean_and_spread(values_B, deviations))


def batch_values(batch_linear_BP: np.ndarray, batch_quad_BPP: np.ndarray, choice_G: np.ndarray) -> np.ndarray:
    """c_b·x + ½ xᵀH_b x of every batch, float64 [B]."""
    quad_BGG = batch_quad_BPP[:, choice_G[:, None], choice_G[None, :]]
    return batch_linear_BP[:, choice_G].sum(axis=1) + 0.5 * quad_BGG.sum(axis=(1, 2))


def solve_robust(
    problem: Problem,
    batch_linear_BP: np.ndarray,
    batch_quad_BPP: np.ndarray,
    *,
    deviations: float,
    time_limit_s: float,
    seed: int,
    rounds: int = 6,
    hint_G: np.ndarray | None = None,
) -> Solution:
    """The choice of least mean + deviations · std found, with a valid bound.

    Args:
        problem: Groups, budgets, ties and constant; its own c and H are not used.
        batch_linear_BP: c of every batch, float64 [B, P], B ≥ 2.
        batch_quad_BPP: H of every batch, symmetric float64 [B, P, P], zero inside groups.
        deviations: k ≥ 0.
        time_limit_s: For all rounds together.
        seed: Of the searches.
        rounds: Reweighted problems to solve at most.
        hint_G: Start.

    Raises:
        ValueError: If there are fewer than two batches, shapes disagree, or `deviations` is negative.
    """
    num_batches, num_options = batch_linear_BP.shape
    if num_batches < 2 or batch_quad_BPP.shape != (num_batches, num_options, num_options):
        raise ValueError(
            f"batches have shapes {batch_linear_BP.shape} and {batch_quad_BPP.shape}; need [B, P], [B, P, P]"
        )
    if not deviations >= 0:
        raise ValueError(f"deviations is {deviations}; must be ≥ 0")
    started, batches = time.perf_counter(), (batch_linear_BP, batch_quad_BPP)
    weight_B = np.zeros(num_batches)
    best: Solution | None = None
    bound = -np.inf
    choice_G = hint_G
    for done in range(rounds):
        left_s = 0.95 * time_limit_s - (time.perf_counter() - started)
        if done and left_s < 0.05 * time_limit_s:
            break
        mix_B = 1.0 / num_batches + deviations * weight_B / np.sqrt(num_batches - 1)
        quad_PP = np.tensordot(mix_B, batch_quad_BPP, axes=1)
        quad_PP = 0.5 * (quad_PP + quad_PP.T)
        mixed = replace(problem, linear_P=mix_B @ batch_linear_BP, quad_PP=quad_PP)
        answer = QuadraticSolver().solve(
            mixed, time_limit_s=left_s / (rounds - done), seed=seed, hint_G=choice_G
        )
        if answer.choice_G is None:
            if best is None or best.choice_G is None:
                return answer
            return _final(best, bound, robust_size(problem, *batches, best.choice_G, deviations), started)
        choice_G = answer.choice_G
        if answer.bound is not None:
            bound = max(bound, answer.bound)
        values_B = batch_values(batch_linear_BP, batch_quad_BPP, choice_G)
        objective = problem.constant + float(mean_and_spread(values_B, deviations))
        if best is None or best.objective is None or objective < best.objective:
            best = replace(answer, objective=objective)
        if deviations == 0:
            break
        spread_B = values_B - values_B.mean()
        norm = float(np.linalg.norm(spread_B))
        target_B = spread_B / norm if norm > 0 else np.zeros(num_batches)
        moved_B = weight_B + (target_B - weight_B) / (1.0 + 0.5 * done)
        if np.allclose(moved_B, weight_B, atol=1e-9):
            break
        weight_B = moved_B
    assert best is not None and best.choice_G is not None
    choice_G = best.choice_G
    if deviations > 0:
        choice_G = descend(
            problem, batch_linear_BP, batch_quad_BPP, choice_G, deviations, started + time_limit_s
        )
        objective = problem.constant + robust_value(batch_linear_BP, batch_quad_BPP, choice_G, deviations)
        best = replace(best, choice_G=choice_G, objective=objective, costs=problem.costs(choice_G))
    return _final(best, bound, robust_size(problem, *batches, choice_G, deviations), started)


def robust_size(
    problem: Problem,
    batch_linear_BP: np.ndarray,
    batch_quad_BPP: np.ndarray,
    choice_G: np.ndarray,
    deviations: float,
) -> float:
    """Sum of the absolute values of the summands of the robust objective, in the reweighted form of largest weights."""
    quad_BGG = np.abs(batch_quad_BPP[:, choice_G[:, None], choice_G[None, :]])
    size_B = np.abs(batch_linear_BP[:, choice_G]).sum(axis=1) + 0.5 * quad_BGG.sum(axis=(1, 2))
    most = 1.0 / len(size_B) + deviations / np.sqrt(max(1, len(size_B) - 1))
    return abs(problem.constant) + most * float(size_B.sum())


def _final(best: Solution, bound: float, size: float, started: float) -> Solution:
    assert best.objective is not None
    final = replace(
        best,
        bound=lowered(bound, best.objective, size) if np.isfinite(bound) else None,
        seconds=time.perf_counter() - started,
    )
    proven = final.gap is not None and final.gap <= 1e-6
    if proven:
        return replace(final, termination=Termination.OPTIMAL)
    if best.termination is Termination.OPTIMAL:
        detail = "each reweighted problem was solved; the gap left is between max-min and min-max"
        return replace(final, termination=Termination.FEASIBLE, detail=detail)
    return final
