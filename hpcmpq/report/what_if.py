"""What another budget gives: every assignment that the frontier solved for, beside the one that the report shows."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from hpcmpq.formats import FORMATS
from hpcmpq.report.bits import nearest, shown_format
from hpcmpq.report.display import STYLE_OF_COST, cost_title, show, show_cost, show_interval
from hpcmpq.report.findings import Z95, Findings
from hpcmpq.solve.formulate import cost_values
from hpcmpq.wording import label, other_objective

SIZES = ("weight_bits", "average_bits", "size_bytes")


@dataclass(frozen=True)
class Alternative:
    """An assignment that was solved for.

    Attributes:
        limit: Of the cost that varies; None of the shown solution.
        choice_G: Chosen option per group, int64 [G].
        cost: What it reaches of that cost.
        predicted: Predicted loss.
        stderr: Standard error of it over disjoint calibration batches, or None without batches.
        bound: Proven lower bound within its budgets, or None.
        gap: Between `predicted` and `bound`, or None.
        termination: Why the solver stopped, in words.
        shown: Whether it is the assignment that the report is about.
    """

    limit: float | None
    choice_G: np.ndarray
    cost: float
    predicted: float
    stderr: float | None
    bound: float | None
    gap: float | None
    termination: str
    shown: bool


def alternatives(findings: Findings) -> list[Alternative]:
    """The points of the frontier, smallest first; none without a frontier."""
    frontier = findings.frontier or {"points": []}
    found = [_alternative(findings, point, float(point["limit"])) for point in frontier["points"]]
    return sorted(found, key=_order)


def with_the_shown(findings: Findings) -> list[Alternative]:
    """`alternatives` with the shown solution among them, where its cost puts it."""
    found = alternatives(findings)
    if found and not any(each.shown for each in found) and findings.size_cost in findings.solution["costs"]:
        found.append(_alternative(findings, findings.solution, None))
    return sorted(found, key=_order)


def num_changed(findings: Findings, choice_G: np.ndarray) -> int:
    """Groups that have another format than in the shown solution."""
    return int((choice_G != findings.choice_G).sum())


@dataclass(frozen=True)
class Stretch:
    """Neighbouring budgets at which a group has one format.

    Attributes:
        text: The format as the map of bits shows it.
        bits: Key of its colour.
        length: Budgets.
        words: The format and the costs that it is used at.
    """

    text: str
    bits: int
    length: int
    words: str


def stretches(findings: Findings) -> list[tuple[str, list[Stretch]]]:
    """(group, its formats from the smallest budget to the largest) in model order."""
    found, cost = alternatives(findings), findings.size_cost
    space = findings.plan.space
    rows = []
    for g, group in enumerate(space.groups):
        parts = []
        for name, run in groupby(found, key=lambda each: space.options[each.choice_G[g]].format):
            costs = [each.cost for each in run]
            first, last = (_plain(cost, end) for end in (costs[0], costs[-1]))
            where = first if first == last else f"{first} to {last}"
            form = FORMATS[name]
            parts.append(
                Stretch(shown_format(form), nearest(form.num_bits), len(costs), f"{name} at {where}")
            )
        rows.append((group.name, parts))
    return rows


def questions(findings: Findings, marks: list[list[float] | None]) -> dict[str, Any] | None:
    """What the slider over budgets shows, as plain values; None without a frontier.

    Args:
        findings: What the run found.
        marks: Place on the figure of losses of each of `with_the_shown`, as fractions of its width and height.
    """
    found, space = with_the_shown(findings), findings.plan.space
    if not found:
        return None
    names = list(dict.fromkeys(option.format for option in space.options))
    return {
        "groups": [group.name for group in space.groups],
        "weights": [f"{group.numel:,}" for group in space.groups],
        "formats": [[name, shown_format(FORMATS[name]), nearest(FORMATS[name].num_bits)] for name in names],
        "bits": [FORMATS[name].num_bits for name in names],
        "shown": [names.index(form.name) for form in findings.formats],
        "start": next((n for n, each in enumerate(found) if each.shown), 0),
        "stops": [
            {
                "title": _title(findings, each),
                "facts": _facts(findings, each),
                "formats": [names.index(space.options[p].format) for p in each.choice_G],
                "mark": mark,
            }
            for each, mark in zip(found, marks, strict=True)
        ],
    }


def _title(findings: Findings, each: Alternative) -> str:
    cost = findings.size_cost
    return f"{_plain(cost, each.cost)} {_unit(cost)}".strip() + (", this assignment" if each.shown else "")


def _facts(findings: Findings, each: Alternative) -> list[tuple[str, str]]:
    """(term, value) of one alternative."""
    costs, cost = cost_values(findings.plan, each.choice_G), findings.size_cost
    ours = findings.solution["costs"]
    facts = []
    if each.limit is not None:
        facts.append(("Budget", f"at most {show_cost(cost, each.limit)}"))
    for name in dict.fromkeys((*SIZES, cost)):
        if name in costs:
            change = "" if each.shown or name not in ours else f" ({_change(costs[name], ours[name])})"
            facts.append((cost_title(name).capitalize(), _plain(name, costs[name]) + change))
    loss = show(each.predicted, "loss")
    if each.stderr is not None:
        ends = (each.predicted - Z95 * each.stderr, each.predicted + Z95 * each.stderr)
        loss += f", {show_interval(ends)} (95 %, over calibration batches)"
    facts.append((f"Predicted {findings.objective_short}", loss))
    if not each.shown:
        change = show(each.predicted - float(findings.solution["predicted_loss"]), "signed")
        facts.append(("Against this assignment", change))
    bound = "none" if each.bound is None else f"{show(each.bound, 'loss')} (gap {show(each.gap, 'share')})"
    return [*facts, ("Proven lower bound", bound), ("The solver ended", each.termination)]


def _change(value: float, before: float) -> str:
    """Relative change.

    Example:
        >>> _change(90.0, 100.0), _change(100.0, 100.0)
        ('−10 %', 'the same')
    """
    if not before or abs(value / before - 1) < 1e-9:
        return "the same" if value == before or before else "—"
    change = show(value / before - 1, "share")
    return change if value < before else f"+{change}"


def _plain(cost: str, value: float) -> str:
    return show(value, STYLE_OF_COST.get(cost, "seconds" if cost.endswith("_s") else "number"))


def _unit(cost: str) -> str:
    """What follows the number of a cost that carries no unit of its own."""
    return "" if cost == "size_bytes" or cost.endswith("_s") else label(cost)


def _alternative(findings: Findings, values: dict[str, Any], limit: float | None) -> Alternative:
    solver = findings.solution["solver"] if limit is None else (findings.frontier or {}).get("solver")
    # Whether the bound is one on the predicted loss.
    bounded = solver is None or not other_objective(solver, findings.interactions_measured)
    choice_G = findings.plan.space.choice(values["assignment"])
    return Alternative(
        limit=limit,
        choice_G=choice_G,
        cost=float(values["costs"][findings.size_cost]),
        predicted=float(values["predicted_loss"]),
        stderr=findings.stderr_over_batches(choice_G),
        bound=values["bound"] if bounded else None,
        gap=values["gap"] if bounded else None,
        termination=values["termination"].replace("_", " "),
        shown=num_changed(findings, choice_G) == 0,
    )


def _order(each: Alternative) -> tuple[float, float]:
    return each.cost, -each.predicted
