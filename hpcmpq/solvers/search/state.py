"""Tabu search over one-flips and budget-keeping pair swaps with incrementally maintained marginals.

State per option p, given everybody else's choice: the objective's marginal c_p + (Hx)_p and every budget's
marginal cost. A flip i: p0 → p changes the objective by m_p − m_p0; flipping q in another group as well adds
d_q + H[p,q] − H[p0,q] − H[p,q0] + H[p0,q0]. Both are exact because H is zero inside groups.

Axis letters: P options, G groups, C budgets, L first legs of a pair.
"""

import numpy as np

from hpcmpq.cross_terms import add_row, rows_sum
from hpcmpq.solvers.compact.compact import Compact, JointCost


class SearchState:
    """A choice with its marginals; `flip` keeps them up to date."""

    def __init__(self, compact: Compact, choice_G: np.ndarray) -> None:
        self.compact = compact
        self.group_P = compact.group_P
        self.tables_of_group: dict[int, list[JointCost]] = {}
        for table in compact.tables:
            for group in table.groups:
                self.tables_of_group.setdefault(group, []).append(table)
        self.reset(choice_G)

    def reset(self, choice_G: np.ndarray) -> None:
        """Recompute everything for a choice."""
        compact = self.compact
        self.choice_G = choice_G.copy()
        self.marginal_P = compact.linear_P + rows_sum(compact.quad_PP, choice_G)
        self.objective = compact.objective(choice_G)
        self.cost_CP = compact.cost_CP
        if compact.tables:
            self.cost_CP = compact.cost_CP.copy()
            for table in compact.tables:
                for group in table.groups:
                    self._add_slice(table, group, 1.0)
        self.slack_C = compact.limit_C - compact.costs(choice_G)

    def _add_slice(self, table: JointCost, group: int, sign: float) -> None:
        compact = self.compact
        index = tuple(
            slice(None) if g == group else int(self.choice_G[g] - compact.offset_H[g]) for g in table.groups
        )
        start, stop = compact.offset_H[group], compact.offset_H[group + 1]
        values = np.where(np.isfinite(table.table[index]), table.table[index], FORBIDDEN)
        self.cost_CP[table.budget, start:stop] += sign * values

    def flip(self, option: int) -> None:
        """Choose `option` in its group."""
        compact, group = self.compact, int(self.group_P[option])
        old = int(self.choice_G[group])
        self.objective += float(self.marginal_P[option] - self.marginal_P[old])
        tables = self.tables_of_group.get(group, ())
        for table in tables:
            for other in table.groups:
                if other != group:
                    self._add_slice(table, other, -1.0)
        self.choice_G[group] = option
        for table in tables:
            for other in table.groups:
                if other != group:
                    self._add_slice(table, other, 1.0)
        add_row(compact.quad_PP, option, self.marginal_P, 1.0)
        add_row(compact.quad_PP, old, self.marginal_P, -1.0)
        if compact.tables:
            self.slack_C = compact.limit_C - compact.costs(self.choice_G)
        else:
            self.slack_C = self.slack_C + compact.cost_CP[:, old] - compact.cost_CP[:, option]

    def deltas(self) -> tuple[np.ndarray, np.ndarray]:
        """Change of the objective [P] and of every budget's cost [C, P] when an option is chosen alone."""
        size_G = self.compact.size_G
        delta_P = self.marginal_P - np.repeat(self.marginal_P[self.choice_G], size_G)
        return delta_P, self.cost_CP - np.repeat(self.cost_CP[:, self.choice_G], size_G, axis=1)


FORBIDDEN = 1e6
"""Stands for an infinite cost in marginals; finite costs are at most about 1 after presolve."""


def repair(state: SearchState, max_flips: int) -> bool:
    """Flip towards feasibility, cheapest rise of the objective per violation removed first."""
    for _ in range(max_flips):
        over_C = np.maximum(-state.slack_C, 0.0)
        over_C[~np.isfinite(over_C)] = FORBIDDEN
        if not over_C.any():
            return True
        delta_P, cost_CP = state.deltas()
        slack_C = np.where(np.isfinite(state.slack_C), state.slack_C, -FORBIDDEN)
        after_P = np.maximum(cost_CP - slack_C[:, None], 0.0).sum(axis=0)
        gain_P = over_C.sum() - after_P
        useful = np.flatnonzero(gain_P > 1e-15)
        if len(useful) == 0:
            return False
        rise_P = np.maximum(delta_P[useful] - delta_P[useful].min(), 1e-12)
        state.flip(int(useful[np.argmin(rise_P / np.minimum(gain_P[useful], over_C.sum()))]))
    return bool((state.slack_C >= 0).all())
