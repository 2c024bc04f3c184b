"""A start of a large relaxation from the same problem on few options a group, widened step by step.

The narrowest problem is started twice, from the convex form and cold, and what proves more after the same steps goes
on: with strong negative curvature a convex form lies far below, and a cold start takes more steps on the way.

At a budget most options are out of question: beside a good choice they cost far more than what they would save. The
relaxation of the two most promising options of every group is small and converges fast; its multiplier is carried to
three, four, five and then all options, and is nearly right there. Nothing is assumed about the options that are added:
the carried Z is a start like any other, whose bound `admm.certified` computes.

An added option q takes after its likest neighbour n(q) in the group, by strength of interaction. With M = C + Z:

- M_pq = M_n(p)n(q), also inside groups, and products of q with slacks are those of n(q) with them;
- what the slacks' products say about the budget is kept: Z_pq rises as cost_p Z_sq + cost_q Z_sp − cost_p
  cost_q Z_ss does from the neighbours;
- Z_0q makes Z orthogonal to v̄ = (1, y, s) along e_q − e_n(q), as Y ≈ v̄ v̄ᵀ asks for;
- Z_qq takes six tenths of the own excess that this leaves q, which brings LᵀZL near to LᵀZL ⪯ 0; the rest is kept
  to exclude q by.

Axis letters: N lifted coordinates, M those of the narrower problem, P options, G groups, C budgets.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpcmpq.solvers.compact.compact import Compact, restrict
from hpcmpq.solvers.compact.lagrangian import best_prices
from hpcmpq.solvers.proof import convex_start
from hpcmpq.solvers.proof.admm import full_scale, iterate
from hpcmpq.solvers.proof.node import Node, advance, all_pairs, make_node
from hpcmpq.solvers.proof.positive_part import PositivePart, positive_part


@dataclass(frozen=True)
class Schedule:
    """How problems widen.

    Attributes:
        steps: Steps on the problem of so many options a group.
        wider: Steps on each problem of more.
        growth: Of the options a group from one problem to the next.
    """

    steps: Mapping[int, int]
    wider: int
    growth: float

    def after(self, width: int) -> int:
        """Options a group of the next problem."""
        return max(width + 1, round(self.growth * width))


FIRST_STEPS = 30
"""Of both starts on two options a group."""

CONVEX = Schedule({3: 10}, 5, 1.34)
"""From a convex form: 2, 3, 4, 5, 7, 9 options a group."""

COLD = Schedule({3: 20, 4: 15}, 10, 1.2)
"""From a cold start: 2, 3, 4, 5, 6, 7, 8, 10 options a group."""

TIME_SHARE = 0.4
"""Of the time, at most, for the narrower problems."""

CONVEX_SHARE = 0.1
"""Of the time, at most, for the convex form of the whole problem."""

TAKEN = 0.6
"""Share of the added options' own excess that goes into LᵀZL ⪯ 0: with all of it nothing is left that excludes them."""


def start(
    compact: Compact,
    scale_P: np.ndarray,
    choice_G: np.ndarray,
    seed: int,
    deadline: float,
    positive_part: PositivePart = positive_part,
) -> Node:
    """A node of the whole problem with the widened iterate; with that of the convex form where it has joint tables.

    Args:
        compact: The problem, dense.
        scale_P: Preconditioner.
        choice_G: A good feasible choice.
        seed: Of the Lanczos start of the convex form.
        deadline: In `time.perf_counter` seconds.
        positive_part: What decomposes the relaxations' matrices.
    """
    original_G, rank_P = compact.expand(choice_G), promise(compact, choice_G)
    every_P = np.ones(compact.num_options, bool)
    until = time.perf_counter() + TIME_SHARE * (deadline - time.perf_counter())

    def cold(keep_P: np.ndarray) -> Node:
        part = compact if keep_P.all() else restrict(compact, keep_P)
        assert part is not None  # every group keeps its best two options
        return make_node(part, all_pairs(part), scale_P[keep_P], positive_part)

    def convex(keep_P: np.ndarray) -> Node:
        node = cold(keep_P)
        choice_G = node.compact.compress(original_G)
        assert choice_G is not None
        node.state = convex_start.start(
            node.compact, node.relaxation, node.projector, node.state, choice_G, seed, until
        )
        return node

    def widened(keep_P: np.ndarray, narrow: Node, narrow_P: np.ndarray) -> Node:
        node = cold(keep_P)
        return node if widen(node, narrow, narrow_P[keep_P]) else convex(keep_P)

    width, widest = 2, int(compact.size_G.max())
    if widest <= width or compact.tables:
        until = time.perf_counter() + CONVEX_SHARE * (deadline - time.perf_counter())
        return convex(every_P)
    node, keep_P, schedule = convex(rank_P < width), rank_P < width, CONVEX
    rival = cold(keep_P)
    for one in (node, rival):
        advance(one, FIRST_STEPS, until)
    if rival.bound > node.bound:
        node, schedule = rival, COLD
    while (width := schedule.after(width)) < widest and time.perf_counter() < until:
        wide = widened(rank_P < width, node, keep_P)
        for _ in range(
            schedule.steps.get(width, schedule.wider)
        ):  # uncertified: it proves nothing of the whole
            if time.perf_counter() > until:
                break
            iterate(wide.relaxation, wide.projector, wide.state, wide.objective_NN)
        node, keep_P = wide, rank_P < width
    until = time.perf_counter() + CONVEX_SHARE * (deadline - time.perf_counter())
    return widened(every_P, node, keep_P)


def promise(compact: Compact, choice_G: np.ndarray) -> np.ndarray:
    """Place of every option in its group, int64 [P]: 0 is the choice, then by what changing to it alone would cost.

    Costs of budgets count at the prices of the knapsack that the choice leaves.
    """
    marginal_P = compact.linear_P + compact.quad_PP[choice_G].sum(axis=0)
    marginal_P += best_prices(compact, marginal_P) @ compact.cost_CP
    marginal_P[choice_G] = -np.inf
    order = np.lexsort((marginal_P, compact.group_P))
    place_P = np.empty(compact.num_options, dtype=np.int64)
    place_P[order] = np.arange(compact.num_options) - compact.offset_H[compact.group_P[order]]
    return place_P


def neighbours(compact: Compact, keep_P: np.ndarray) -> np.ndarray:
    """The option of `keep_P` in its group whose strength of interaction is the nearest ratio off, int64 [P]."""
    strength_P = np.log(np.maximum(np.sqrt((compact.quad_PP**2).mean(axis=1)), 1e-300))
    near_P = np.arange(compact.num_options)
    for first, end in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
        kept = first + np.flatnonzero(keep_P[first:end])
        added = first + np.flatnonzero(~keep_P[first:end])
        off = np.abs(strength_P[added, None] - strength_P[kept])
        near_P[added] = kept[off.argmin(axis=1)]
    return near_P


def widen(wide: Node, narrow: Node, keep_P: np.ndarray) -> bool:
    """Start a node from the iterate of the same problem on the options `keep_P`; False where their budgets differ.

    Args:
        wide: Gets the iterate; without joint tables, of as many groups, with the same scales of options.
        narrow: Solved for some steps.
        keep_P: Options of `wide` that `narrow` has, bool [P].
    """
    compact, old, new = wide.compact, narrow.relaxation.lift, wide.relaxation.lift
    if old.num_budgets != new.num_budgets:
        return False
    kept, added = np.flatnonzero(keep_P), np.flatnonzero(~keep_P)
    near_P = neighbours(compact, keep_P)
    inner, slack = slice(1, 1 + len(kept)), slice(1 + len(kept), None)
    places = np.concatenate([[0], 1 + old.column_P, np.arange(1 + old.padded, old.size)])
    scale_N = full_scale(old)[places]
    z_MM = narrow.state.z_NN[np.ix_(places, places)] * scale_N * scale_N[:, None]
    y_MM = narrow.state.y_NN[np.ix_(places, places)].astype(np.float64)
    y_P = np.zeros(compact.num_options)
    y_P[kept] = y_MM[0, inner] / scale_N[inner]
    # Costs as the narrower problem counts them: above its cheapest option, in units of its limits.
    starts, cost_CP = compact.offset_H[:-1], compact.cost_CP[wide.relaxation.used_C]
    least_CG = np.minimum.reduceat(np.where(keep_P, cost_CP, np.inf), starts, axis=1)
    cost_CP = (cost_CP - least_CG[:, compact.group_P]) / narrow.relaxation.unit_C[:, None]
    place_P = (np.cumsum(keep_P) - 1)[near_P]
    slack_CP, slack_CC = z_MM[slack, inner][:, place_P], z_MM[slack, slack]
    m_MM = z_MM[inner, inner] + 0.5 * compact.quad_PP[np.ix_(kept, kept)]
    z_PP = m_MM[np.ix_(place_P, place_P)] - 0.5 * compact.quad_PP
    near_CP = cost_CP[:, near_P]
    change_PP = (cost_CP - near_CP).T @ slack_CP
    z_PP += change_PP + change_PP.T
    z_PP -= cost_CP.T @ slack_CC @ cost_CP - near_CP.T @ slack_CC @ near_CP
    first_P = z_MM[0, inner][place_P]
    left_C = 1.0 - cost_CP @ y_P
    along_P = z_PP @ y_P + slack_CP.T @ left_C  # (Z v̄) of options but for Z_0
    along_P -= (z_MM[slack, 0] + slack_CP @ y_P + slack_CC @ left_C) @ cost_CP
    first_P[added] -= along_P[added] - along_P[near_P[added]]
    own_P = np.diagonal(z_PP) + 2.0 * first_P + compact.linear_P
    least_G = np.minimum.reduceat(np.where(keep_P, own_P, np.inf), starts)
    z_PP[added, added] -= TAKEN * np.maximum(own_P - least_G[compact.group_P], 0.0)[added]
    unit_C = wide.relaxation.unit_C / narrow.relaxation.unit_C
    options, slacks = 1 + new.column_P, np.arange(1 + new.padded, new.size)
    z_NN: np.ndarray = np.zeros((new.size, new.size))
    z_NN[np.ix_(options, options)] = z_PP
    z_NN[0, options] = z_NN[options, 0] = first_P
    z_NN[np.ix_(slacks, options)] = slack_CP
    z_NN[np.ix_(options, slacks)] = slack_CP.T
    z_NN[0, slacks] = z_NN[slacks, 0] = z_MM[slack, 0]
    z_NN[np.ix_(slacks, slacks)] = slack_CC
    z_NN[0, 0] = z_MM[0, 0]
    factor_N = 1.0 / full_scale(new)
    factor_N[slacks] = unit_C
    z_NN *= factor_N
    z_NN *= factor_N[:, None]
    dtype = wide.projector.dtype
    y_NN: np.ndarray = np.zeros((new.size, new.size), dtype=dtype)
    y_MM[slack] /= unit_C[:, None]
    y_MM[:, slack] /= unit_C
    to = np.concatenate([[0], options[kept], slacks])
    y_NN[np.ix_(to, to)] = y_MM
    state = wide.state
    if not np.abs(z_NN).max() < convex_start.LARGEST * np.abs(wide.objective_NN).max():
        return False
    state.y_NN, state.z_NN, state.penalty = y_NN, z_NN.astype(dtype), narrow.state.penalty
    state.from_convex, state.falling, state.rank = narrow.state.from_convex, False, narrow.state.rank
    return True
