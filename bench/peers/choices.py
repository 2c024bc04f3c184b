"""What every method that runs here chooses within a budget: its costs, its solver, its measured selection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.peers.calibration import Calibrated
from bench.peers.judge import Judge
from hpcmpq.problem import Problem
from hpcmpq.refine.portfolio import make_candidates, narrow_options
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.formulate import additive, make_problem, uniform_choices, uniform_hint
from hpcmpq.solve.outcome import solve_problem
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solvers import make_solver

SOLVE_S = 5.0
"""Wall seconds of one solve."""

TIGHTER = (1.0, 0.97)
"""Factors on the budget whose answers PrismaQuant's measured selection chooses among."""


@dataclass(frozen=True)
class Contest:
    """One budget of one calibrated run.

    Attributes:
        calibrated: The run.
        limit: Bits per weight.
        held_out: Measures on held-out samples of the calibration text, for selections.
        cost: The name of what is limited, by default without scales.
    """

    calibrated: Calibrated
    limit: float
    held_out: Judge
    cost: str = "weight_bits"

    def settings(self, **changes: object) -> SolverConfig:
        """The run's, with few seconds."""
        return settings_of(self.calibrated.plan, time_limit_s=SOLVE_S, **changes)

    def problem(self, settings: SolverConfig) -> Problem:
        """Ours, under some settings."""
        model = shrunk(self.calibrated.quadratic, settings.shrink)
        return make_problem(self.calibrated.plan, model, {self.cost: self.limit}, settings)

    def additive(self, cost_P: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """The choice of least total cost where options do not interact."""
        budgets = {self.cost: self.limit * factor}
        problem = additive(self.calibrated.plan, cost_P, budgets, self.settings())
        found = make_solver("quadratic").solve(problem, time_limit_s=SOLVE_S, seed=0)
        assert found.choice_G is not None
        return found.choice_G

    def lowest(self, choices: Sequence[np.ndarray]) -> np.ndarray:
        """The choice of lowest measured KL on held-out samples."""
        space = self.calibrated.plan.space
        losses = [self.held_out.verdict(space.assignment(c)).kl_N.mean() for c in choices]
        return choices[int(np.argmin(losses))]

    def is_feasible(self, choice_G: np.ndarray) -> bool:
        """Whether a choice is within the budget."""
        return self.problem(self.settings(drop_cross_terms=True)).is_feasible(choice_G)

    def uniform(self) -> np.ndarray:
        """The widest uniform format within the budget."""
        choices = uniform_choices(self.calibrated.plan.space).values()
        return [choice_G for choice_G in choices if self.is_feasible(choice_G)][-1]

    def secant(self, **changes: object) -> np.ndarray:
        """The answer of `hpcmpq solve`."""
        settings = self.settings(**changes)
        problem = self.problem(settings)
        hint_G = uniform_hint(self.calibrated.plan.space, problem)
        model = shrunk(self.calibrated.quadratic, settings.shrink)
        choice_G = solve_problem(problem, model, settings, hint_G).choice_G
        assert choice_G is not None
        return choice_G

    def portfolio(self, solved_G: np.ndarray) -> np.ndarray:
        """What the first step of `hpcmpq refine` starts from: the best of its portfolio on held-out samples."""
        space = self.calibrated.plan.space
        candidates = make_candidates(
            solved_G, self.settings(), self.problem, uniform_choices(space), narrow_options(space, solved_G)
        )
        return self.lowest([candidate.choice_G for candidate in candidates])


OURS = "ours: secant, portfolio"

Method = Callable[[Contest, dict[str, np.ndarray]], np.ndarray]


METHODS: dict[str, Method] = {
    "uniform": lambda contest, costs: contest.uniform(),
    OURS: lambda contest, costs: contest.portfolio(contest.secant()),
    "ours: secant": lambda contest, costs: contest.secant(),
    "ours: cross terms dropped": lambda contest, costs: contest.secant(drop_cross_terms=True),
    "PrismaQuant, cost and measured selection": lambda contest, costs: contest.lowest(
        [contest.additive(costs["prismaquant"], factor) for factor in TIGHTER]
    ),
    "AutoBit (CASA), self-cost": lambda contest, costs: contest.additive(costs["autobit"]),
    "HAWQ, trace": lambda contest, costs: contest.additive(costs["hawq"]),
    "ModelOpt's formula, shipped codes": lambda contest, costs: contest.additive(costs["modelopt"]),
}
"""Every method that runs in this environment, from the costs of `bench.peers.costs`."""
