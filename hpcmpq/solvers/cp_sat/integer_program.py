"""The objective of an integer program over a compact problem, with products and joint tables in it.

Axis letters: P options, G groups, E products.
"""

from dataclasses import dataclass

import numpy as np

from hpcmpq.solvers.compact.compact import Compact, JointCost

VALUE_STEPS = 2.0**42
"""Integer steps in the objective's range."""

PairTerms = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(p, q, value) of products x_p x_q, arrays [E]."""


@dataclass(frozen=True)
class Program:
    """An objective over a compact problem's feasible choices.

    Attributes:
        compact: Groups, budgets and tables; its objective is not used.
        value_P: Objective of every option, float64 [P].
        products: (p, q, value) of linearised products x_p x_q, arrays [E].
        value_tables: Joint tables added to the objective; `budget` is ignored.
        alive_P: Options that may be chosen, bool [P].
    """

    compact: Compact
    value_P: np.ndarray
    products: PairTerms | None
    value_tables: tuple[JointCost, ...]
    alive_P: np.ndarray

    def value(self, choice_G: np.ndarray) -> float:
        """The objective at a choice."""
        return sum(float(part.sum()) for part in self._summands(choice_G))

    def rounding(self, choice_G: np.ndarray) -> float:
        """What `value` is uncertain by as a sum of floating-point numbers."""
        size = sum(float(np.abs(part).sum()) for part in self._summands(choice_G))
        return 16.0 * float(np.finfo(np.float64).eps) * size

    def _summands(self, choice_G: np.ndarray) -> list[np.ndarray]:
        parts = [self.value_P[choice_G]]
        for table in self.value_tables:
            groups = np.array(table.groups)
            parts.append(table.table[tuple(choice_G[groups] - self.compact.offset_H[groups])])
        if self.products is not None:
            chosen_P = np.zeros(self.compact.num_options, bool)
            chosen_P[choice_G] = True
            p_E, q_E, value_E = self.products
            parts.append(value_E[chosen_P[p_E] & chosen_P[q_E]])
        return parts

    def unit(self) -> float:
        """The objective's integer step."""
        starts = self.compact.offset_H[:-1]
        most_G = np.maximum.reduceat(np.where(self.alive_P, self.value_P, -np.inf), starts)
        least_G = np.minimum.reduceat(np.where(self.alive_P, self.value_P, np.inf), starts)
        size = float((most_G - least_G).sum())
        for table in self.value_tables:
            finite = table.table[np.isfinite(table.table)]
            size += float(np.ptp(finite)) if finite.size else 0.0
        if self.products is not None:
            size += float(np.abs(self.products[2]).sum())
        return max(size, 1e-290) / VALUE_STEPS
