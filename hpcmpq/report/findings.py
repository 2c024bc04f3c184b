"""What a run directory found, read from its artefacts once."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hpcmpq.formats import FORMATS, Format
from hpcmpq.plan import Plan
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.space import Group
from hpcmpq.store import RunDir, read_json, read_plan, read_quadratic

LABELS = {
    "kl": "KL divergence to the original",
    "ce": "cross-entropy",
    "mse": "mean squared output distance",
    "weight_bits": "bits per weight",
    "average_bits": "bits per weight with scales",
    "size_bytes": "checkpoint size in bytes",
    "bops": "bit operations",
    "macs": "16-bit multiply-accumulates",
    "latency_s": "latency in seconds",
}
SHORT_LABELS = {"kl": "KL", "ce": "cross-entropy", "mse": "MSE"}


@dataclass(frozen=True)
class Findings:
    """Artefacts of one run.

    Attributes:
        run: Where they lie.
        plan: `plan.json`.
        quadratic: `quadratic.h5`.
        solution: `solution.json`.
        evaluation: `evaluation.json`, or None if there is none for this solution.
        frontier: `frontier.json`, or None if there is none for this plan.
        timings: {stage: {"seconds": ...}} of the stages that ran here.
        missing: {artefact: sentence that says how to get it}.
    """

    run: RunDir
    plan: Plan
    quadratic: QuadraticModel
    solution: dict[str, Any]
    evaluation: dict[str, Any] | None
    frontier: dict[str, Any] | None
    timings: dict[str, dict[str, Any]]
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


def read_findings(run: RunDir) -> Findings:
    """Read the artefacts of a solved run.

    Raises:
        UserError: If plan, quadratic model or solution are missing or damaged.
    """
    plan = read_plan(run)
    quadratic = read_quadratic(run.quadratic_path)
    solution = read_json(run.solution_path, f"hpcmpq solve {run.path}")
    missing: dict[str, str] = {}
    evaluation = _optional(run, "evaluation", "evaluate", missing)
    if evaluation is not None and evaluation["assignment"] != solution["assignment"]:
        evaluation = None
        missing["evaluation"] = (
            f"evaluation.json measured another assignment than solution.json holds now; run "
            f"`hpcmpq evaluate {run.path}` to measure this one."
        )
    frontier = _optional(run, "frontier", "frontier", missing)
    if frontier is not None and frontier.get("fingerprint", plan.fingerprint) != plan.fingerprint:
        frontier = None
        missing["frontier"] = (
            f"frontier.json belongs to another plan; run `hpcmpq frontier {run.path}` again."
        )
    timings_path = run.file("timings.json")
    timings = read_json(timings_path, f"hpcmpq solve {run.path}") if timings_path.exists() else {}
    return Findings(run, plan, quadratic, solution, evaluation, frontier, timings, missing)


def label(name: str) -> str:
    """A metric or cost in words."""
    return LABELS.get(name, name.replace("_", " "))


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
