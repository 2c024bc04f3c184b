"""A start of the relaxation from a convex form of the objective, in place of a cold one.

With H + diag d convex (`spectral`) and y its minimiser over the simplices within the budgets at prices π,

    f(x) = tangent at y + ½ (x − y)ᵀ (H + diag d) (x − y).

Minus the square is the first multiplier Z: it gives the tangent's bound at once, with LᵀZL ⪯ 0 and few positive
eigenvalues from the first step on. Y starts as the lifted y. While β is large, Z moves away from
the form; as β falls far below a cold start's the bound rises, where a cold start passes through bounds far below zero.

Axis letters: N lifted coordinates, P options, C budgets.
"""

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices
from hpcmpq.solvers.proof.admm import Iterate, full_scale
from hpcmpq.solvers.proof.projection import Projector
from hpcmpq.solvers.proof.relaxation import Relaxation, separable_budgets
from hpcmpq.solvers.proof.spectral import convex_form


def start(
    compact: Compact,
    relaxation: Relaxation,
    projector: Projector,
    cold: Iterate,
    choice_G: np.ndarray,
    seed: int,
    deadline: float,
) -> Iterate:
    """The iterate of the convex form, or the cold one where prices are out of proportion.

    Args:
        compact: The problem, dense.
        relaxation: Its relaxation.
        projector: The relaxation's.
        cold: The cold start, whose β sets the scale.
        choice_G: A good choice.
        seed: Of the Lanczos start.
        deadline: In `time.perf_counter` seconds.
    """
    shift_P, y_P = convex_form(compact, choice_G, seed, deadline)
    lift = relaxation.lift
    used_C = relaxation.used_C
    cost_CP = separable_budgets(compact)[0][used_C] / relaxation.unit_C[:, None]
    limit_C = np.ones(lift.num_budgets)
    product_P = 0.5 * (compact.quad_PP @ y_P + shift_P * y_P)
    gradient_P = compact.linear_P - 0.5 * shift_P + 2.0 * product_P
    price_C = best_prices(compact, gradient_P)[used_C] * relaxation.unit_C
    options, slacks = 1 + lift.column_P, slice(1 + lift.padded, None)
    z_NN: np.ndarray = np.zeros((lift.size, lift.size))
    z_NN[np.ix_(options, options)] = -0.5 * compact.quad_PP
    z_NN[options, options] -= 0.5 * shift_P
    # π (s + cost·x − limit) is zero: with it the budget's price acts on the options.
    z_NN[0, options] = z_NN[options, 0] = product_P + 0.5 * price_C @ cost_CP
    z_NN[0, slacks] = z_NN[slacks, 0] = 0.5 * price_C
    z_NN[0, 0] = -float(y_P @ product_P) - float(price_C @ limit_C)
    if not np.abs(z_NN).max() <= LARGEST * np.abs(relaxation.objective_NN).max():
        return cold
    scale_N = full_scale(lift)
    z_NN /= scale_N
    z_NN /= scale_N[:, None]
    point_N = np.zeros(lift.size)
    point_N[0], point_N[options] = 1.0, y_P * lift.scale_X[lift.column_P]
    point_N[slacks] = limit_C - cost_CP @ y_P
    y_NN = projector.project(np.multiply.outer(point_N, point_N).astype(projector.dtype))
    return Iterate(
        y_NN,
        z_NN.astype(projector.dtype),
        FIRST_PENALTY * cold.penalty,
        from_convex=True,
        falling=True,
        rank=1,
        part_s=cold.part_s,
    )


LARGEST = 1e5
"""Entries of Z in units of the objective's largest, above which float32 would not do."""

WORTH_FROM = 1000
"""Options from which a proof starts so: a real model's 480 were proven optimal faster from a cold start."""

FIRST_PENALTY = 3.0
"""β of the first steps in units of a cold start's; it falls by `admm.FALL` a step."""
