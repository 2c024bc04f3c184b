"""Lower bounds from the doubly nonnegative relaxation by the alternating direction method of multipliers.

    minimise ⟨C, Y⟩   subject to   Y = L R Lᵀ,  Y in the polyhedral set,  R ⪰ 0.

With a multiplier Z of Y = L R Lᵀ, any symmetric Z gives the valid bound

    min_Y ⟨C + Z, Y⟩ − trace · max(0, λ_max(Lᵀ Z L)),

because the lifted Y of a feasible x has ⟨Z, Y⟩ = yᵀ(LᵀZL)y ≤ λ_max |y|². The update of R leaves
Lᵀ Z L ⪯ 0, so the bound needs no repair but for rounding, for which the eigenvalue is computed and a margin
is subtracted. The scheme follows Graham, Hu, Im, Li, Sun, Wolkowicz, "A restricted dual Peaceman-Rachford
splitting method for a strengthened DNN relaxation for QAP" (INFORMS J. Computing 2022).

Axis letters: N lifted coordinates, n subspace, r its rank, X padded options.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from hpcmpq.solvers.proof.definite import largest_eigenvalue
from hpcmpq.solvers.proof.lift import ROWS, Lift
from hpcmpq.solvers.proof.projection import Projector
from hpcmpq.solvers.proof.relaxation import Minimum, Relaxation, minimise
from hpcmpq.solvers.proof.threads import blas_threads, in_threads, slices


@dataclass
class Iterate:
    """Where the method stands; also a warm start.

    Attributes:
        y_NN: Polyhedral iterate.
        z_NN: Multiplier.
        penalty: β.
        from_convex: Whether it started from a convex form, whose multiplier is good and needs a small β.
        falling: Whether β still falls step by step.
        rank: Rank of the last R.
        steps: Steps done.
        largest: λ_max(Lᵀ Z L) of the last certificate.
        part_s: Seconds of the steps by part; shared with the iterates made from this one.
    """

    y_NN: np.ndarray
    z_NN: np.ndarray
    penalty: float
    from_convex: bool = False
    falling: bool = False
    rank: int = 0
    steps: int = 0
    largest: float = 0.0
    part_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass(frozen=True)
class Bound:
    """A proven bound with the excesses that prove exclusions.

    Attributes:
        value: Lower bound on the compact objective; +inf proves that no allowed choice exists.
        minimum: The excesses; a feasible choice x has f(x) ≥ value + Σ own excess + Σ pair excess.
        largest: What was proven of λ_max(Lᵀ Z L).
    """

    value: float
    minimum: Minimum
    largest: float = 0.0


def start(relaxation: Relaxation, projector: Projector) -> tuple[Iterate, np.ndarray]:
    """The cold start and the scaled objective.

    Y is independent and uniform. Z = Π C Π − C with Π = L Lᵀ: adding Z to C changes nothing for Y = L R Lᵀ
    and takes out of C what the assignment rows make constant.
    """
    lift = relaxation.lift
    scale_N = full_scale(lift)
    objective_NN = relaxation.objective_NN / scale_N
    objective_NN /= scale_N[:, None]
    objective_NN = objective_NN.astype(projector.dtype)
    y_NN = projector.project(np.zeros((lift.size, lift.size), dtype=projector.dtype))
    z_NN = lift.up(np.ascontiguousarray(lift.up(lift.down(objective_NN)).T))
    z_NN -= objective_NN
    penalty = (
        START_PENALTY
        * max(float(np.linalg.norm(objective_NN)), 1e-30)
        / max(float(np.linalg.norm(y_NN)), 1e-30)
    )
    return Iterate(y_NN, z_NN, penalty), objective_NN


START_PENALTY = 0.1
"""β in units of |C| / |Y|."""


def iterate(
    relaxation: Relaxation, projector: Projector, state: Iterate, objective_NN: np.ndarray
) -> np.ndarray:
    """One step, in place; returns the half-step multiplier, which gives the bound."""
    lift, beta, begun = relaxation.lift, state.penalty, time.perf_counter()
    rows = slices(lift.size, ROWS)
    held_NN = np.empty_like(state.z_NN)

    def start_from(part: slice) -> None:
        np.multiply(state.z_NN[part], 1.0 / beta, out=held_NN[part])
        held_NN[part] += state.y_NN[part]

    in_threads(start_from, rows, lift.dimension)
    w_nn = lift.down(held_NN)
    decomposing = time.perf_counter()
    with blas_threads(lift.dimension):
        eigenvalue_r, vector_nr = projector.positive_part(w_nn, state.rank)
    decomposed = time.perf_counter()
    factor_Nr = lift.up(vector_nr * np.sqrt(eigenvalue_r))
    x_NN = factor_Nr @ factor_Nr.T
    half_NN = np.empty_like(state.z_NN)

    def half_step(part: slice) -> None:
        np.subtract(state.y_NN[part], x_NN[part], out=half_NN[part])
        half_NN[part] *= beta
        half_NN[part] += state.z_NN[part]
        np.add(half_NN[part], objective_NN[part], out=held_NN[part])
        held_NN[part] *= -1.0 / beta
        held_NN[part] += x_NN[part]

    in_threads(half_step, rows, lift.dimension)
    projecting = time.perf_counter()
    y_NN = projector.project(held_NN)
    projected = time.perf_counter()
    state.steps += 1
    if state.falling:
        state.penalty = FALL * beta
    if state.steps % (10 if state.steps <= 100 else 25) == 0:
        primal = float(np.linalg.norm(y_NN - x_NN)) / max(float(np.linalg.norm(y_NN)), 1e-30)
        dual = beta * float(np.linalg.norm(y_NN - state.y_NN)) / max(float(np.linalg.norm(half_NN)), 1e-30)
        ratio = primal / max(dual, 1e-30)
        state.falling = state.falling and ratio < CONVEX_RATIO
        if not state.falling:
            state.penalty = beta * balance(ratio, state.steps, state.from_convex)

    def whole_step(part: slice) -> None:
        np.subtract(y_NN[part], x_NN[part], out=held_NN[part])
        held_NN[part] *= beta
        held_NN[part] += half_NN[part]

    in_threads(whole_step, rows, lift.dimension)
    state.z_NN, state.y_NN, state.rank = held_NN, y_NN, len(eigenvalue_r)
    state.part_s["eigen-decomposition"] += decomposed - decomposing
    state.part_s["projection"] += projected - projecting
    state.part_s["products"] += (
        time.perf_counter() - begun - (decomposed - decomposing) - (projected - projecting)
    )
    return half_NN


FALL, CONVEX_RATIO = 0.9, 70.0
"""Factor of β a step from a convex form, and the ratio of changes at which it stops to fall and is balanced."""


def balance(ratio: float, steps: int, from_convex: bool = False) -> float:
    """Factor for β from the ratio of the relative primal and dual changes.

    On realistic instances the fastest convergence came with ratios of 6 after 10 steps and 5 until 150; the
    ratio falls as 1/β. Later a smaller one serves the tail. From a convex form ratios of 50 to 100 did.
    """
    if from_convex:
        return float(np.clip(np.sqrt(ratio / CONVEX_RATIO), 0.7, 1.5))
    if steps <= 30:
        return float(np.clip(ratio / (6.0 if steps <= 10 else 5.0), 0.2, 5.0))
    target = 5.0 if steps <= 150 else 2.0
    factor = float(np.clip(np.sqrt(ratio / target), 0.7, 1.5))
    return factor if not 0.9 < factor < 1.1 else 1.0


def certified(relaxation: Relaxation, z_NN: np.ndarray, allowed_XX: np.ndarray, like: float = 0.0) -> Bound:
    """The valid bound of a multiplier, in float64 with a margin for rounding.

    Only the multiplier's symmetric part acts on Y; `minimise` reads one half of some blocks, so that part is taken.

    Args:
        relaxation: Whose Y is bounded.
        z_NN: The multiplier.
        allowed_XX: Pairs that may be chosen together.
        like: λ_max(Lᵀ Z L) of a similar multiplier; saves attempts at this one's.
    """
    lift = relaxation.lift
    z_NN = z_NN.astype(np.float64)
    z_NN = 0.5 * (z_NN + z_NN.T)
    epsilon = np.finfo(np.float64).eps
    down_nn = lift.down(z_NN)
    with blas_threads(lift.dimension):
        largest = proven = largest_eigenvalue(down_nn, like / 8.0)
    largest += 4.0 * lift.dimension * epsilon * float(np.linalg.norm(z_NN))
    scale_N = full_scale(lift)
    m_NN = z_NN * scale_N
    m_NN *= scale_N[:, None]
    m_NN += relaxation.objective_NN
    minimum = minimise(relaxation, m_NN, allowed_XX)
    margin = 4.0 * epsilon * lift.num_groups**2 * float(np.abs(m_NN).max())
    return Bound(minimum.value - lift.trace * max(0.0, largest) - margin, minimum, proven)


def full_scale(lift: Lift) -> np.ndarray:
    """D for every lifted coordinate, [N]."""
    return np.concatenate([[1.0], lift.scale_X, np.ones(lift.num_budgets)])
