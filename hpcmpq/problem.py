"""The bit-assignment problem and its answer: a quadratic multiple-choice knapsack.

minimise  constant + Σ_p c_p x_p + ½ Σ_pq H_pq x_p x_q
over x one-hot per group, within every budget, with ties and forbidden options.
"""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from hpcmpq.cross_terms import CrossTerms
from hpcmpq.quadratic import quadratic_increase


@dataclass(frozen=True)
class CostTerm:
    """A cost that several groups cause together, such as the measured time of a sub-graph.

    Attributes:
        groups: Indices of the groups, length m.
        table: Cost of every combination of their options in option order, float64 [J_1, ..., J_m].
            ``inf`` forbids a combination.
    """

    groups: tuple[int, ...]
    table: np.ndarray


@dataclass(frozen=True)
class Cost:
    """A cost of an assignment: constant + Σ_p linear_p x_p + Σ terms.

    Attributes:
        name: Name in budgets, such as ``weight_bits``.
        unit: Unit of the value.
        linear_P: Contribution of every option alone, float64 [P]. ``inf`` forbids an option.
        terms: Contributions of several groups together.
        constant: What every assignment costs.
    """

    name: str
    unit: str
    linear_P: np.ndarray
    terms: tuple[CostTerm, ...] = ()
    constant: float = 0.0

    def value(self, choice_G: np.ndarray, offset_G: np.ndarray) -> float:
        """Cost of one option index per group; `offset_G` is the first option index of each group."""
        total = self.constant + float(self.linear_P[choice_G].sum())
        for term in self.terms:
            groups = np.array(term.groups)
            total += float(term.table[tuple(choice_G[groups] - offset_G[groups])])
        return total


@dataclass(frozen=True)
class Budget:
    """An upper limit on a cost, in the cost's unit."""

    cost: Cost
    limit: float


@dataclass(frozen=True)
class Problem:
    """One instance.

    Attributes:
        linear_P: c, float64 [P].
        quad_PP: H, symmetric float64 [P, P], zero inside groups; may be indefinite. A numpy array, or a `scipy.sparse`
            matrix where most entries are zero (`cross_terms.blocked` makes one).
        group_P: Group index of every option, int64 [P], sorted, 0..G-1, each group with an option.
        budgets: All must hold.
        allowed_P: bool [P]; options that may be chosen.
        ties: Sets of groups that must choose options of the same class.
        constant: Added to the objective (the original's loss).
        group_names: For messages, [G].
        tie_class_P: Class of every option, such as the number of its format, int64 [P], no two alike inside a
            group; None where the position inside the group is the class.
    """

    linear_P: np.ndarray
    quad_PP: CrossTerms
    group_P: np.ndarray
    budgets: tuple[Budget, ...] = ()
    allowed_P: np.ndarray | None = None
    ties: tuple[tuple[int, ...], ...] = ()
    constant: float = 0.0
    group_names: tuple[str, ...] = ()
    tie_class_P: np.ndarray | None = None

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.group_P[-1]) + 1

    @property
    def offset_G(self) -> np.ndarray:
        """First option index of each group, int64 [G]."""
        return np.searchsorted(self.group_P, np.arange(self.num_groups))

    def objective(self, choice_G: np.ndarray) -> float:
        """Objective of one option index per group."""
        return self.constant + quadratic_increase(self.linear_P, self.quad_PP, choice_G)

    def costs(self, choice_G: np.ndarray) -> dict[str, float]:
        """{name: value} of every budget's cost at one option index per group."""
        offset_G = self.offset_G
        return {b.cost.name: b.cost.value(choice_G, offset_G) for b in self.budgets}

    def is_feasible(self, choice_G: np.ndarray) -> bool:
        """Whether an assignment keeps every budget (see `feasibility_limit`), tie and forbidden option."""
        offset_G = self.offset_G
        if self.allowed_P is not None and not self.allowed_P[choice_G].all():
            return False
        class_G = choice_G - offset_G if self.tie_class_P is None else self.tie_class_P[choice_G]
        if any(len(set(class_G[list(tie)].tolist())) > 1 for tie in self.ties):
            return False
        return all(b.cost.value(choice_G, offset_G) <= feasibility_limit(b) for b in self.budgets)


def feasibility_limit(budget: Budget) -> float:
    """The largest cost that counts as within a budget: above the limit by 1e-9 of it and the rounding of its summands.

    Times in seconds can be far below 1, so nothing absolute is added. Constants that options nearly cancel leave a
    small cost with the rounding of large summands: see `_summands`.
    """
    return budget.limit + _tolerance(budget)


def search_limit(budget: Budget) -> float:
    """What solvers keep a cost to: half the tolerance above the limit.

    So rounding of sums in another order, by less than the other half, neither leaves out a choice that keeps the
    limit nor lets one in that does not count as keeping it.
    """
    return budget.limit + 0.5 * _tolerance(budget)


def _tolerance(budget: Budget) -> float:
    return 1e-9 * abs(budget.limit) + 64.0 * float(np.finfo(np.float64).eps) * _summands(budget)


def _summands(budget: Budget) -> float:
    """At most the sum of the absolute values of the summands of a cost within the limit.

    Positive summands add up to the limit and what negative ones take off again; options dearer than that do not count.
    """
    cost = budget.cost
    arrays = (np.array([cost.constant]), cost.linear_P, *(term.table for term in cost.terms))
    negative = -sum(float(np.minimum(array, 0.0).sum()) for array in arrays)
    return max(0.0, budget.limit) + 2.0 * negative


class Termination(Enum):
    """Why a solver stopped."""

    OPTIMAL = "optimal"
    """Proven: the gap is at most 1e-6 relative."""
    TIME_LIMIT = "time_limit"
    """A feasible assignment with a valid bound, stopped by the clock."""
    FEASIBLE = "feasible"
    """A feasible assignment with a valid bound; the method has nothing more to try."""
    INFEASIBLE = "infeasible"
    """Proven: no assignment meets the budgets."""
    NO_SOLUTION = "no_solution"
    """No feasible assignment was found in time; the problem may have one."""


@dataclass(frozen=True)
class ProofLine:
    """Where a proof stood after one of its bounds.

    Attributes:
        seconds: Since the proof began.
        node: 1 is the whole problem, others are parts of it.
        steps: Of the node's relaxation, with those that it took over.
        step_s: Seconds of a step, smoothed.
        dimension: Of the matrices that a step decomposes.
        rank: Of the relaxation's solution.
        options: Not excluded at this node.
        bound: Of this node, in the objective's unit.
        objective: Of the best assignment so far.
        proven: Lower bound of the whole problem so far.
    """

    seconds: float
    node: int
    steps: int
    step_s: float
    dimension: int
    rank: int
    options: int
    bound: float
    objective: float
    proven: float

    @property
    def gap(self) -> float:
        """See `relative_gap`, of the whole problem."""
        return relative_gap(self.objective, self.proven)


@dataclass(frozen=True)
class Solution:
    """A solver's answer.

    Attributes:
        termination: Why it stopped.
        choice_G: Option index per group, int64 [G], or None without a feasible assignment.
        objective: Objective of `choice_G`, or None.
        bound: A proven lower bound on the objective of every feasible assignment, or None.
        costs: Value of every budget's cost.
        seconds: Wall time.
        detail: One sentence for people: what limits it, or the smallest reachable cost when infeasible.
        proof: How the bound came about, where the solver says so.
        part_s: {part of the solver: seconds}, where it says so.
    """

    termination: Termination
    choice_G: np.ndarray | None
    objective: float | None
    bound: float | None
    costs: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    detail: str = ""
    proof: tuple[ProofLine, ...] = ()
    part_s: dict[str, float] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """See `relative_gap`, or None."""
        if self.objective is None or self.bound is None:
            return None
        return relative_gap(self.objective, self.bound)


def relative_gap(objective: float, bound: float) -> float:
    """(objective − bound) / |objective|, not negative; 0 where both are zero."""
    return max(0.0, objective - bound) / max(abs(objective), 1e-300)
