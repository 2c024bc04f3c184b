"""Findings as figures."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hpcmpq.report.findings import Findings, label, short_name
from hpcmpq.report.tables import frontier_table, uniform_curve
from hpcmpq.report.theme import STYLE, THEME
from hpcmpq.report.words import Z95

MAX_NAMED = 40
"""Groups that still get a label each on the axes of the interaction map."""


def all_figures(findings: Findings) -> dict[str, Figure]:
    """Every figure that the artefacts allow, by file name."""
    with matplotlib.rc_context(STYLE):
        figures = {"loss_against_size": loss_against_size(findings), "interactions": interactions(findings)}
        if findings.evaluation is not None:
            figures["predicted_against_measured"] = predicted_against_measured(findings)
        return figures


def loss_against_size(findings: Findings) -> Figure:
    """Loss increase over cost: this assignment, the frontier and its bounds, and the uniform curve."""
    figure, axes = _figure(7.2, 3.9)
    loss0, cost = findings.quadratic.loss0, findings.size_cost
    uniform = [(x, y - loss0, name) for name, x, y in uniform_curve(findings) if y > loss0]
    axes.plot(*_columns(uniform), "o--", color=THEME["uniform"], markersize=5, label="uniform, predicted")
    for x, y, name in uniform:
        axes.annotate(name, (x, y), (5, 5), textcoords="offset points", color=THEME["muted"], fontsize=9)
    if findings.frontier is not None:
        points = [(row[0], row[1] - loss0, row[2]) for row in frontier_table(findings).rows]
        axes.plot(*_columns(points), "-", color=THEME["ours"], label="frontier, predicted")
        bounds = [(x, bound - loss0) for x, _, bound in points if bound is not None and bound > loss0]
        axes.plot(*_columns(bounds), ":", color=THEME["ours"], label="frontier, proven bound")
    reached, bound = findings.solution["costs"][cost], findings.solution["bound"]
    if findings.increase > 0:
        axes.plot(
            [reached], [findings.increase], "o", color=THEME["ours"], markersize=8, label="this assignment"
        )
    if bound is not None and bound > loss0:
        axes.plot(
            [reached], [bound - loss0], "_", color=THEME["ours"], markersize=16, label="its proven bound"
        )
    for model, x, colour in (
        ("quantized", reached, THEME["ours"]),
        ("uniform", (findings.evaluation or {}).get("uniform_costs", {}).get(cost), THEME["uniform"]),
    ):
        rise = _rise(findings, model)
        if rise is not None and x is not None:
            axes.plot(
                [x], [rise], "x", color=colour, markersize=9, markeredgewidth=2, label=_names(findings)[model]
            )
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_xlabel(label(cost))
    axes.set_ylabel(f"increase of {findings.objective_short}")
    axes.legend(loc="upper right")
    return figure


def predicted_against_measured(findings: Findings) -> Figure:
    """Measured over predicted loss increase with 95 % intervals, on equal logarithmic axes."""
    figure, axes = _figure(5.4, 4.6)
    loss0 = findings.quadratic.loss0
    assert findings.evaluation is not None
    uniform = findings.solution["uniform"][findings.evaluation["uniform_format"]]["predicted_loss"] - loss0
    link = findings.solution.get("refine", {}).get("link")
    drawn: list[float] = []
    if link is not None:
        points = [(x, y) for x, y in zip(link["predicted"], link["measured"], strict=True) if x > 0 and y > 0]
        axes.plot(*_columns(points), "o", color=THEME["muted"], markersize=4, label="assignments of the link")
        drawn += [value for point in points for value in point]
    for model, predicted, colour in (
        ("quantized", findings.increase, THEME["ours"]),
        ("uniform", uniform, THEME["uniform"]),
    ):
        rise, stderr = _rise(findings, model), findings.stderr(model)
        if rise is not None and rise > 0 and predicted > 0:
            spread = min(Z95 * (stderr or 0.0), 0.95 * rise)
            axes.errorbar(
                [predicted], [rise], [spread], fmt="o", color=colour, capsize=4, label=_names(findings)[model]
            )
            drawn += [predicted, rise - spread, rise + spread]
    if drawn:
        limits = (min(drawn) / 1.5, max(drawn) * 1.5)
        axes.plot(
            limits, limits, "-", color=THEME["muted"], linewidth=1, label="predicted = measured", zorder=0
        )
        axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
        _plain_numbers(axes.xaxis)
        _plain_numbers(axes.yaxis)
    axes.set_xlabel(f"predicted increase of {findings.objective_short}")
    axes.set_ylabel(f"measured increase of {findings.objective_short}")
    axes.legend(loc="upper left")
    return figure


def interactions(findings: Findings) -> Figure:
    """Heat map of the interactions between groups at their chosen formats."""
    groups, pairs_GG = findings.plan.space.groups, findings.pairs_GG
    size = 3.2 + 0.14 * min(len(groups), MAX_NAMED)
    figure, axes = _figure(size + 1.2, size)
    axes.grid(False)
    strength = np.abs(pairs_GG[pairs_GG != 0])
    top = float(np.quantile(strength, 0.99)) if strength.size else 1.0
    axes.imshow(_tint(pairs_GG / top), interpolation="nearest")
    starts = [g for g in range(1, len(groups)) if groups[g].block != groups[g - 1].block]
    for start in starts:
        axes.axhline(start - 0.5, color=THEME["line"], linewidth=0.8)
        axes.axvline(start - 0.5, color=THEME["line"], linewidth=0.8)
    named = range(len(groups)) if len(groups) <= MAX_NAMED else [0, *starts]
    names = [short_name(groups[g]) if len(groups) <= MAX_NAMED else str(groups[g].block) for g in named]
    axes.set_xticks(list(named), names, rotation=90, fontsize=8)
    axes.set_yticks(list(named), names, fontsize=8)
    axes.tick_params(length=0)
    scale = np.linspace(1, -1, 101)
    key = axes.inset_axes((1.04, 0.0, 0.035, 1.0))
    key.set_facecolor("none")
    key.imshow(_tint(scale)[:, None], aspect="auto", extent=(0, 1, -top, top))
    key.set_xticks([])
    key.yaxis.tick_right()
    key.grid(False)
    key.set_ylabel(f"{findings.objective_short} beyond the sum of each alone")
    key.yaxis.set_label_position("right")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    return figure, axes


def _plain_numbers(axis: Axis) -> None:
    """Ticks of a logarithmic axis as 0.02, not 2 × 10⁻²; at 1, 2 and 5 where that is few enough to read."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _tint(value: np.ndarray) -> np.ndarray:
    """RGBA of values in [-1, 1]: clear at zero, so that any background shows through."""
    more, less = np.array(to_rgb(THEME["more"])), np.array(to_rgb(THEME["less"]))
    colour = np.where((value > 0)[..., None], more, less)
    return np.concatenate([colour, np.sqrt(np.abs(value).clip(0, 1))[..., None]], axis=-1)


def _rise(findings: Findings, model: str) -> float | None:
    measured, original = findings.measured(model), findings.measured("original")
    return None if measured is None or original is None else measured - original


def _names(findings: Findings) -> dict[str, str]:
    uniform = (findings.evaluation or {}).get("uniform_format", "")
    return {"quantized": "this assignment, measured", "uniform": f"uniform {uniform}, measured"}


def _columns(points: list[tuple]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
