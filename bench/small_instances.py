"""Small random instances of the bit-assignment problem, told by format names, and what enumerating them says.

Nothing here but `Instance.problem` knows the package: feasibility, ties and objectives are worked out from the
tables below by sums that round once (`math.fsum`), so that a fault of the package's own definitions shows.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcmpq.problem import Budget, Cost, CostTerm, Problem, Solution, Termination

FORMATS = ("int2", "int3", "int4", "fp8", "int8", "bf16")

Cell = tuple[int, str]
"""A group and the format it takes."""


@dataclass(frozen=True)
class Limit:
    """A budget: constant + Σ own + Σ tables ≤ limit; a table is (groups, {their formats: cost})."""

    limit: float
    constant: float
    own: dict[Cell, float]
    tables: tuple[tuple[tuple[int, ...], dict[tuple[str, ...], float]], ...] = ()

    def terms(self, formats: tuple[str, ...]) -> list[float]:
        """What an assignment costs, one number per summand."""
        own = [self.own[cell] for cell in enumerate(formats)]
        tables = [table[tuple(formats[g] for g in groups)] for groups, table in self.tables]
        return [self.constant, *own, *tables]


@dataclass(frozen=True)
class Instance:
    """minimise constant + Σ loss + Σ pairs over one format per group.

    Attributes:
        formats: What every group may take.
        constant: Added to the objective.
        loss: Of every option alone.
        pairs: Interaction of two options of different groups, the lower group first.
        limits: The budgets.
        forbidden: Options that may not be chosen.
        ties: Groups that must take the same format.
    """

    formats: tuple[tuple[str, ...], ...]
    constant: float
    loss: dict[Cell, float]
    pairs: dict[tuple[Cell, Cell], float]
    limits: tuple[Limit, ...] = ()
    forbidden: frozenset[Cell] = frozenset()
    ties: tuple[tuple[int, ...], ...] = ()

    def terms(self, formats: tuple[str, ...]) -> list[float]:
        """The objective of an assignment, one number per summand."""
        cells = list(enumerate(formats))
        return [
            self.constant,
            *(self.loss[c] for c in cells),
            *(self.pairs[p] for p in itertools.combinations(cells, 2)),
        ]

    def meets_rules(self, formats: tuple[str, ...]) -> bool:
        """Whether an assignment has no forbidden option and equal formats where groups are tied."""
        allowed = not any(cell in self.forbidden for cell in enumerate(formats))
        return allowed and all(len({formats[g] for g in tie}) == 1 for tie in self.ties)

    def problem(self) -> Problem:
        """The instance as the package sees it."""
        cells = [(g, f) for g, names in enumerate(self.formats) for f in names]
        place = {cell: p for p, cell in enumerate(cells)}
        quad_PP = np.zeros((len(cells), len(cells)))
        for (first, second), value in self.pairs.items():
            quad_PP[place[first], place[second]] = quad_PP[place[second], place[first]] = value
        budgets = []
        for number, limit in enumerate(self.limits):
            tables = []
            for groups, table in limit.tables:
                names = [self.formats[g] for g in groups]
                values = np.array([table[key] for key in itertools.product(*names)])
                tables.append(CostTerm(groups, values.reshape([len(n) for n in names])))
            own_P = np.array([limit.own[cell] for cell in cells])
            cost = Cost(f"cost{number}", "units", own_P, tuple(tables), limit.constant)
            budgets.append(Budget(cost, limit.limit))
        return Problem(
            linear_P=np.array([self.loss[cell] for cell in cells]),
            quad_PP=quad_PP,
            group_P=np.array([g for g, _ in cells]),
            budgets=tuple(budgets),
            allowed_P=np.array([cell not in self.forbidden for cell in cells]) if self.forbidden else None,
            ties=self.ties,
            tie_class_P=np.array([FORMATS.index(f) for _, f in cells]) if self.ties else None,
            constant=self.constant,
        )

    def named(self, choice_G: np.ndarray) -> tuple[str, ...]:
        """The formats of a choice of options."""
        flat = [f for names in self.formats for f in names]
        return tuple(flat[p] for p in choice_G.tolist())

    def choice(self, formats: tuple[str, ...]) -> np.ndarray:
        """The choice of options of an assignment, int64 [G]."""
        starts = itertools.accumulate((len(names) for names in self.formats), initial=0)
        return np.array(
            [s + names.index(f) for s, names, f in zip(starts, self.formats, formats, strict=False)]
        )


def least(instance: Instance) -> tuple[float, tuple[str, ...]] | None:
    """The least objective of all assignments that keep the rules and every limit exactly, and one that has it."""
    best: tuple[float, tuple[str, ...]] | None = None
    for formats in every(instance):
        if all(math.fsum(limit.terms(formats)) <= limit.limit for limit in instance.limits):
            value = math.fsum(instance.terms(formats))
            if best is None or value < best[0]:
                best = value, formats
    return best


def every(instance: Instance) -> Iterator[tuple[str, ...]]:
    """All assignments that keep the rules, whatever they cost."""
    return (f for f in itertools.product(*instance.formats) if instance.meets_rules(f))


def faults(
    instance: Instance, answer: Solution, best: tuple[float, tuple[str, ...]] | None, exact: bool = False
) -> list[str]:
    """What is wrong with a solver's answer, given the enumerated optimum; `exact` asks for that optimum."""
    found: list[str] = []
    if best is not None:
        rounding = 1e-12 * math.fsum(map(abs, instance.terms(best[1])))
        if answer.termination is Termination.INFEASIBLE:
            found.append("false infeasible")
        if answer.bound is not None and not answer.bound <= best[0] + rounding:
            found.append("invalid bound")
    if answer.choice_G is None:
        if answer.termination not in (Termination.INFEASIBLE, Termination.NO_SOLUTION) or not answer.detail:
            found.append("nothing said")
        return found
    formats = instance.named(answer.choice_G)
    terms = instance.terms(formats)
    size = math.fsum(map(abs, terms))
    if answer.objective is None or abs(answer.objective - math.fsum(terms)) > 1e-12 * size:
        found.append("wrong objective")
    if not instance.meets_rules(formats):
        found.append("rule broken")
    for limit in instance.limits:
        costs = limit.terms(formats)
        slack = 1e-9 * abs(limit.limit) + 1e-13 * math.fsum(map(abs, costs))
        if not math.isfinite(math.fsum(costs)) or math.fsum(costs) > limit.limit + slack:
            found.append("budget broken")
    optimal = answer.termination is Termination.OPTIMAL
    if best is not None and math.fsum(terms) > best[0] + 1e-6 * abs(best[0]) + 1e-12 * size and optimal:
        found.append("false optimal")
    if exact and not optimal:
        found.append("not proven")
    return found


def random_instance(seed: int) -> Instance:
    """A random mix of every kind of constraint, some of them infeasible."""
    rng = np.random.default_rng(seed)
    num_groups = int(rng.integers(1, 6))
    same = rng.random() < 0.4
    most = tuple(f for f in FORMATS if rng.random() < 0.7)[:4] or FORMATS[:2]
    formats = []
    for _ in range(num_groups):
        mine = tuple(f for f in most if same or rng.random() < 0.8)
        formats.append(mine or most[:1])
    cells = [(g, f) for g, names in enumerate(formats) for f in names]
    scale = 10.0 ** int(rng.integers(-12, 7))
    interaction = float(rng.choice([0.0, 1e-9, 1e-3, 0.3, 1.0]))
    sign = int(rng.choice([-1, 0, 0, 1]))
    loss_scale = float(rng.choice([0.0, 1.0, 3.0]))
    loss = {cell: float(rng.standard_normal()) * loss_scale * scale for cell in cells}
    pairs = {}
    for first, second in itertools.combinations(cells, 2):
        if first[0] != second[0]:
            value = float(rng.standard_normal()) * interaction * scale
            pairs[first, second] = abs(value) * sign if sign else value
    forbidden = frozenset(cell for cell in cells if rng.random() < 0.1) if rng.random() < 0.4 else frozenset()
    ties: tuple[tuple[int, ...], ...] = ()
    if num_groups >= 2 and rng.random() < 0.4:
        ties = (tuple(rng.permutation(num_groups)[: int(rng.integers(2, 4))].tolist()),)
    bare = Instance(tuple(formats), 0.0, loss, pairs, (), forbidden, ties)
    likely = [tuple(str(rng.choice(names)) for names in formats) for _ in range(12)]
    kept = [f for f in likely if bare.meets_rules(f)] or likely
    limits = tuple(_random_limit(rng, bare.formats, kept) for _ in range(int(rng.integers(0, 4))))
    constant = float(rng.choice([0.0, 1.5 * scale, 1e6 * scale]))
    if rng.random() < 0.2:  # cancels the objective of some assignment
        constant = -math.fsum(bare.terms(kept[0]))
    return Instance(bare.formats, constant, loss, pairs, limits, forbidden, ties)


def _random_limit(
    rng: np.random.Generator, formats: tuple[tuple[str, ...], ...], likely: list[tuple[str, ...]]
) -> Limit:
    cells = [(g, f) for g, names in enumerate(formats) for f in names]
    scale = 10.0 ** int(rng.integers(-6, 7))
    whole = rng.random() < 0.5
    own = {cell: float(rng.integers(0, 5) if whole else abs(rng.standard_normal())) * scale for cell in cells}
    tables = []
    for _ in range(int(rng.choice([0, 0, 1, 2])) if len(formats) >= 2 else 0):
        groups = tuple(rng.permutation(len(formats))[: int(rng.integers(2, 4))].tolist())
        keys = itertools.product(*(formats[g] for g in groups))
        table = {key: float(rng.integers(0, 3) if whole else rng.random()) * scale for key in keys}
        table = {key: math.inf if rng.random() < 0.15 else value for key, value in table.items()}
        tables.append((groups, table))
    if rng.random() < 0.15:
        own[cells[int(rng.integers(len(cells)))]] = math.inf
    constant = float(rng.choice([0.0, 0.1 * scale]))
    if rng.random() < 0.35:  # a constant that the options cancel
        constant = float(rng.choice([-1.0, 1.0])) * scale * 10.0 ** int(rng.integers(2, 11))
        own = {cell: value - constant / len(formats) for cell, value in own.items()}
    limit = Limit(0.0, constant, own, tuple(tables))
    costs = sorted(math.fsum(limit.terms(f)) for f in likely)
    costs = [cost for cost in costs if math.isfinite(cost)] or [scale]
    exact = costs[int(rng.integers(len(costs)))]
    slack = float(rng.choice([0.0, 0.0, 0.3, -0.3])) * scale * rng.random()
    return Limit(exact + slack, constant, own, tuple(tables))
