"""Exhaustion of what a certificate leaves: all choices whose proven excess stays under the cutoff.

A certificate gives f(x) ≥ value + Σ_i own[x_i] + Σ_{i<j} pair[x_i, x_j] with nonnegative excesses. Assigning
group after group, a partial choice is dropped when value + its excesses + the least excess of every open
group exceeds the cutoff, or when it cannot be completed within a budget.

Axis letters: B partial choices, P options, G groups, C budgets.
"""

import time

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.memory import EXHAUSTION_BYTES

BATCH, BATCH_ENTRIES = 1024, 2**18
"""Partial choices that are completed by a group at once, at most, and their excesses."""


def exhaust(
    compact: Compact,
    value: float,
    own_P: np.ndarray,
    pair_PP: np.ndarray,
    cutoff: float,
    *,
    max_nodes: int,
    deadline: float,
) -> tuple[bool, np.ndarray | None, float]:
    """(finished, best choice below the cutoff or None, its objective or the cutoff).

    Args:
        compact: The problem.
        value: The certificate's constant.
        own_P: Own excesses, inf where excluded.
        pair_PP: Pair excesses, symmetric, inf where excluded, zero inside groups.
        cutoff: Only choices with a smaller objective are looked for.
        max_nodes: Give up after so many partial choices, or where those that wait take half of `EXHAUSTION_BYTES`.
        deadline: Give up then, `time.perf_counter` seconds.
    """
    starts = compact.offset_H[:-1]
    allowed_P = np.isfinite(own_P)
    count_G = np.add.reduceat(allowed_P.astype(int), starts)
    order = _order(compact, own_P, pair_PP, count_G)
    cost_CP = np.where(allowed_P, compact.cost_CP, np.inf)
    least_CG = np.minimum.reduceat(cost_CP, starts, axis=1)
    rest_DC = np.array([least_CG[:, order[depth:]].sum(axis=1) for depth in range(len(order) + 1)])
    best_G: np.ndarray | None = None
    stack = [
        (
            0,
            np.zeros((1, compact.num_groups), np.int64),
            np.zeros(1),
            own_P[None, :].copy(),
            np.zeros((1, len(compact.limit_C))),
        )
    ]
    nodes, waiting_bytes = 0, own_P.nbytes
    batch = max(1, min(BATCH, BATCH_ENTRIES // max(1, compact.num_options)))
    while stack:
        depth, choice_BG, spent_B, excess_BP, cost_BC = stack.pop()
        waiting_bytes -= excess_BP.nbytes
        if depth == len(order):
            for choice_G in choice_BG:
                objective = compact.objective(choice_G)
                if objective < cutoff and compact.feasible(choice_G):
                    cutoff, best_G = objective, choice_G.copy()
            continue
        group = int(order[depth])
        options = np.arange(compact.offset_H[group], compact.offset_H[group + 1])
        parent_E, option_E = np.nonzero(np.isfinite(excess_BP[:, options]))
        option_E = options[option_E]
        nodes += len(parent_E)
        full = waiting_bytes > EXHAUSTION_BYTES / 2
        if full or nodes > max_nodes or time.perf_counter() > deadline:
            return False, best_G, cutoff
        cost_EC = cost_BC[parent_E] + compact.cost_CP[:, option_E].T
        spent_E = spent_B[parent_E] + excess_BP[parent_E, option_E]
        fits_E = (
            cost_EC + rest_DC[depth + 1] <= compact.limit_C + 1e-12 * (1.0 + np.abs(compact.limit_C))
        ).all(axis=1)
        fits_E &= value + spent_E < cutoff
        parent_E, option_E, cost_EC, spent_E = (
            parent_E[fits_E],
            option_E[fits_E],
            cost_EC[fits_E],
            spent_E[fits_E],
        )
        if len(parent_E) == 0:
            continue
        excess_EP = excess_BP[parent_E] + pair_PP[option_E]
        excess_EP[:, np.isin(compact.group_P, order[: depth + 1])] = 0.0  # assigned: paid in `spent_E`
        open_E = np.minimum.reduceat(excess_EP, starts, axis=1).sum(axis=1)
        bound_E = value + spent_E + open_E
        keep = np.flatnonzero(bound_E < cutoff)
        if len(keep) == 0:
            continue
        keep = keep[np.argsort(-bound_E[keep], kind="stable")]  # the best batch is popped first
        child_EG = choice_BG[parent_E[keep]]
        child_EG[:, group] = option_E[keep]
        for first in range(0, len(keep), batch):
            part = slice(first, first + batch)
            stack.append(
                (depth + 1, child_EG[part], spent_E[keep][part], excess_EP[keep[part]], cost_EC[keep][part])
            )
            waiting_bytes += stack[-1][3].nbytes
    return True, best_G, cutoff


def _order(compact: Compact, own_P: np.ndarray, pair_PP: np.ndarray, count_G: np.ndarray) -> np.ndarray:
    """Groups with the strongest interactions per open option first."""
    starts = compact.offset_H[:-1]
    finite_PP = np.minimum(
        pair_PP, np.percentile(pair_PP[np.isfinite(pair_PP)], 99) if np.isfinite(pair_PP).any() else 1.0
    )
    finite_PP[~np.isfinite(own_P)] = 0.0
    strength_G = np.add.reduceat(finite_PP.sum(axis=1), starts) / np.maximum(count_G, 1) ** 2
    return np.argsort(-strength_G, kind="stable")
