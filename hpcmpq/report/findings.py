"""What a run directory found, read from its artefacts once."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hpcmpq.formats import FORMATS, Format
from hpcmpq.plan import Plan
from hpcmpq.problem import relative_gap
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solvers.robust import batch_values
from hpcmpq.space import Group
from hpcmpq.store.json_files import read_json
from hpcmpq.store.measured_losses import is_evaluated_by
from hpcmpq.store.of_solution import is_drawn_for
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import read_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.store.timings import read_timings
from hpcmpq.wording import label, other_objective

Z95 = 1.96
"""Standard errors on either side of a mean that cover 95 % of a normal distribution."""

SHORT_LABELS = {"kl": "KL", "ce": "cross-entropy", "mse": "MSE"}


@dataclass(frozen=True)
class Findings:
    """Artefacts of one run.

    Attributes:
        run: Where they lie.
        plan: `plan.json`.
        quadratic: `quadratic.h5` with its cross terms shrunk as for the solution.
        solution: `solution.json`.
        evaluation: `evaluation.json`, or None if there is none for this solution.
        frontier: `frontier.json`, or None if there is none for this plan.
        timings: {stage: {"seconds": ...}} of the stages that ran here.
        interactions_measured: Whether `quadratic.h5` has cross terms, however small.
        missing: {artefact: sentence that says how to get it}.
    """

    run: RunDir
    plan: Plan
    quadratic: QuadraticModel
    solution: dict[str, Any]
    evaluation: dict[str, Any] | None
    frontier: dict[str, Any] | None
    timings: dict[str, dict[str, Any]]
    interactions_measured: bool
    missing: dict[str, str] = field(default_factory=dict)

    @cached_property
    def choice_G(self) -> np.ndarray:
        """Chosen option per group, int64 [G]."""
        return self.plan.space.choice(self.solution["assignment"])

    @cached_property
    def formats(self) -> tuple[Format, ...]:
        """Chosen format of every group, in model order."""
        return tuple(FORMATS[self.solution["assignment"][group.name]] for group in self.plan.space.groups)

    @cached_property
    def pairs_GG(self) -> np.ndarray:
        """H between the chosen options: loss that two groups cause together beyond each alone, [G, G]."""
        return self.quadratic.quad_PP[np.ix_(self.choice_G, self.choice_G)]

    @cached_property
    def predicted_stderr(self) -> float | None:
        """Standard error of the predicted loss over disjoint calibration batches, or None without batches."""
        return self.stderr_over_batches(self.choice_G)

    def stderr_over_batches(self, choice_G: np.ndarray) -> float | None:
        """`predicted_stderr` of another choice."""
        num_batches = len(self.quadratic.batch_linear_BP)
        if num_batches < 2:
            return None
        values_B = batch_values(self.quadratic.batch_linear_BP, self.quadratic.batch_quad_BPP, choice_G)
        return float(values_B.std(ddof=1) / num_batches**0.5)

    @property
    def objective(self) -> str:
        """``kl``, ``ce`` or ``mse``."""
        return self.quadratic.objective

    @property
    def objective_label(self) -> str:
        """The objective in words."""
        return label(self.objective)

    @property
    def objective_short(self) -> str:
        """The objective in a word, for headers and axes."""
        return SHORT_LABELS.get(self.objective, self.objective)

    @property
    def main_cost(self) -> str:
        """The first budgeted cost, or the payload bits."""
        return next(iter(self.solution["budgets"]), "weight_bits")

    @property
    def size_cost(self) -> str:
        """The cost that losses are drawn over: the frontier's where there is one."""
        return self.main_cost if self.frontier is None else str(self.frontier["cost"])

    @property
    def increase(self) -> float:
        """Predicted loss increase over the original."""
        return float(self.solution["predicted_loss"]) - self.quadratic.loss0

    def measured(self, model: str) -> float | None:
        """Measured objective of ``original``, ``quantized`` or ``uniform``, or None."""
        return None if self.evaluation is None else float(self.evaluation[self.objective][model])

    def stderr(self, model: str) -> float | None:
        """Standard error of `measured` over samples, or None."""
        values = (self.evaluation or {}).get(f"{self.objective}_stderr")
        return None if values is None else float(values[model])

    def interval(self, model: str) -> list[float] | None:
        """95 % interval of `measured`, or None; from the standard error in older evaluations."""
        evaluation = self.evaluation or {}
        if "intervals" in evaluation:
            ends = evaluation["intervals"][self.objective][model]
            return None if ends is None else [float(end) for end in ends]
        measured, stderr = self.measured(model), self.stderr(model)
        return (
            None if measured is None or stderr is None else [measured - Z95 * stderr, measured + Z95 * stderr]
        )

    def rise(self, model: str) -> float | None:
        """Measured increase over the original, or None."""
        measured, original = self.measured(model), self.measured("original")
        return None if measured is None or original is None else measured - original

    def rise_interval(self, model: str) -> list[float] | None:
        """95 % interval of `rise`; None where only those of the two losses are known, which say little of it."""
        found = self.paired(f"{model} - original")
        if found is not None:
            return None if found["interval"] is None else [float(end) for end in found["interval"]]
        return self.interval(model) if self.measured("original") == 0 else None

    def paired(self, pair: str, metric: str | None = None) -> dict[str, Any] | None:
        """The paired difference of a metric, such as ``quantized - uniform``; None if it was not measured."""
        found = (self.evaluation or {}).get("paired", {}).get(metric or self.objective, {}).get(pair)
        return None if found is None else dict(found)

    @property
    def link(self) -> dict[str, Any] | None:
        """Points and coefficients of the link that refinement fitted, or None."""
        found = self.solution.get("refine", {}).get("link")
        return None if found is None else dict(found)

    @property
    def other_objective(self) -> str:
        """What the solver minimised if that was not the predicted loss, in words; else nothing."""
        return other_objective(self.solution["solver"], self.interactions_measured)

    @cached_property
    def solved_gap(self) -> float | None:
        """Gap of the solver's own answer where refinement moved on from it by measured loss; else None."""
        solved = self.solution.get("refine", {}).get("solved_assignment")
        bound = self.solution["bound"]
        if solved is None or solved == self.solution["assignment"] or bound is None or self.other_objective:
            return None
        return relative_gap(self.quadratic.predicted_loss(self.plan.space.choice(solved)), bound)

    @property
    def is_uniform(self) -> bool:
        """Whether all groups got one format."""
        return len({chosen.name for chosen in self.formats}) == 1


def read_findings(run: RunDir) -> Findings:
    """Read the artefacts of a solved run.

    Raises:
        UserError: If plan, quadratic model or solution are missing or damaged.
    """
    plan = read_plan(run)
    measured = read_quadratic(run.quadratic_path, plan)
    solution = read_solution(run)
    quadratic = shrunk(measured, solution["solver"]["shrink"])
    missing: dict[str, str] = {}
    evaluation = _optional(run, "evaluation", "evaluate", missing)
    if evaluation is not None and not is_evaluated_by(evaluation, solution):
        missing["evaluation"] = (
            f"evaluation.json measured {_other(evaluation, solution)} than solution.json holds now; run "
            f"`hpcmpq evaluate {run.path}` to measure this one."
        )
        evaluation = None
    frontier = _optional(run, "frontier", "frontier", missing)
    if frontier is not None and not is_drawn_for(frontier, plan):
        frontier = None
        missing["frontier"] = (
            "frontier.json belongs to another plan, fewer measured options or other times; run "
            f"`hpcmpq frontier {run.path}` again."
        )
    interactions = bool(measured.quad_PP.any())
    return Findings(
        run, plan, quadratic, solution, evaluation, frontier, read_timings(run), interactions, missing
    )


def _other(evaluation: dict[str, Any], solution: dict[str, Any]) -> str:
    """What an evaluation measured that is not the solution's."""
    if evaluation["assignment"] != solution["assignment"]:
        return "another assignment"
    own = solution.get("fingerprint")
    return (
        "the model of another plan"
        if evaluation.get("fingerprint", own) != own
        else "other codes of the assignment"
    )


def kind(group: Group) -> str:
    """What a group is within its block: its name without the path to the block.

    Example:
        >>> kind(Group("model.layers.12.mlp.up_proj", (), 12))
        'mlp.up_proj'
    """
    _, found, rest = group.name.partition(f".{group.block}.")
    return rest if found and group.block is not None else group.name


def short_name(group: Group) -> str:
    """A label for axes: the last part of the name, with the block in front.

    Example:
        >>> short_name(Group("model.layers.12.mlp.up_proj", (), 12))
        '12 up_proj'
    """
    last = kind(group).rsplit(".", 1)[-1]
    return last if group.block is None else f"{group.block} {last}"


def _optional(run: RunDir, artefact: str, command: str, missing: dict[str, str]) -> dict[str, Any] | None:
    path = run.file(f"{artefact}.json")
    if path.exists():
        values: dict[str, Any] = read_json(path, f"hpcmpq {command} {run.path}")
        return values
    missing[artefact] = f"There is no {artefact}.json yet; run `hpcmpq {command} {run.path}` to get it."
    return None
