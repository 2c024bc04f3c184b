"""`greedy`: MPQCO's multiple-choice knapsack greedy on the efficiency frontier.

Source: Chen, Wang, Cheng, "Towards mixed-precision quantization of neural networks via constrained
optimization" (ICCV 2021, arXiv 2110.06554), section 3.3; the frontier is Sinha and Zoltners' (1979).

Axis letters: P options, G groups, C budgets.
"""

import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers.answer import find_feasible, prepare, solution
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.lagrangian import best_prices, dual_value
from hpcmpq.solvers.diagonal import refuse_cross_terms
from hpcmpq.solvers.proof.gilmore_lawler import full_bound


@dataclass(frozen=True)
class GreedySolver:
    """Starts from every group's cheapest option and takes the most efficient upgrade that still fits.

    With several budgets the cost of an option is the sum of its costs as fractions of the limits.

    Attributes:
        drop_cross_terms: Accept a problem with cross terms and choose as if they were zero.
    """

    drop_cross_terms: bool = False

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The greedy choice; the bound is the knapsack's Lagrangian one, valid for the full model.

        Raises:
            UserError: If there are cross terms and `drop_cross_terms` is not set.
        """
        started = time.perf_counter()
        compact = prepare(problem, started, time_limit_s)
        if isinstance(compact, Solution):
            return compact
        crossed = refuse_cross_terms(compact.quad_PP, self.drop_cross_terms, "greedy")
        choice_G = climb(compact)
        if choice_G is None:
            feasible = find_feasible(problem, compact, started, time_limit_s, seed)
            if isinstance(feasible, Solution):
                return feasible
            choice_G = feasible
        if crossed:
            bound = full_bound(compact)
        else:
            bound = dual_value(compact, compact.linear_P, best_prices(compact, compact.linear_P))
            bound -= 1e-12 * float(np.abs(compact.linear_P).max()) * compact.num_groups
        bound = compact.original_objective(bound)
        return solution(problem, compact.expand(choice_G), bound, started, timed_out=False)


def climb(compact: Compact) -> np.ndarray | None:
    """The greedy choice, int64 [G], or None where the cheapest options already break a budget."""
    weight_P = (compact.cost_CP / np.maximum(compact.limit_C, 1e-12)[:, None]).sum(axis=0)
    choice_G = np.empty(compact.num_groups, dtype=np.int64)
    upgrades: list[tuple[float, int, int]] = []
    for group in range(compact.num_groups):
        start, stop = int(compact.offset_H[group]), int(compact.offset_H[group + 1])
        frontier = start + efficiency_frontier(weight_P[start:stop], compact.linear_P[start:stop])
        choice_G[group] = frontier[0]
        for low, high in zip(frontier[:-1], frontier[1:], strict=True):
            gain = (compact.linear_P[low] - compact.linear_P[high]) / (weight_P[high] - weight_P[low])
            upgrades.append((float(gain), int(low), int(high)))
    if not compact.feasible(choice_G):
        return None
    # Efficiencies fall along each group's hull, so a stable sort keeps a group's upgrades in order.
    for _, low, high in sorted(upgrades, key=lambda upgrade: -upgrade[0]):
        group = int(compact.group_P[low])
        if choice_G[group] != low:
            continue  # an earlier upgrade of this group did not fit
        choice_G[group] = high
        if not compact.feasible(choice_G):
            choice_G[group] = low
    return choice_G


def efficiency_frontier(weight_O: np.ndarray, value_O: np.ndarray) -> np.ndarray:
    """Options on the lower convex hull of (weight, value), by rising weight and falling value.

    An option that is no better than a lighter one is dominated; one above the segment between its
    neighbours is LP-dominated. Both are left out.

    Example:
        >>> efficiency_frontier(np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 8.0, 2.0, 5.0])).tolist()
        [0, 2]
    """
    hull: list[int] = []
    for option in np.lexsort((value_O, weight_O)).tolist():
        if hull and value_O[option] >= value_O[hull[-1]]:
            continue
        while len(hull) >= 2:
            first, second = hull[-2], hull[-1]
            rise = (value_O[second] - value_O[first]) * (weight_O[option] - weight_O[first])
            if rise < (value_O[option] - value_O[first]) * (weight_O[second] - weight_O[first]):
                break
            hull.pop()
        hull.append(option)
    return np.array(hull)
