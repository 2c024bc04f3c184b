"""Figures of predicted against measured losses and of interactions, and the list of all figures."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from hpcmpq.report.bits import bits_figure
from hpcmpq.report.curves import loss_against_size
from hpcmpq.report.findings import Z95, Findings, short_name
from hpcmpq.report.partition import partition_figure
from hpcmpq.report.theme import STYLE, THEME, logarithmic, panels
from hpcmpq.space import Group

MAX_NAMED = 40
"""Groups that still get a label each on the axes of the interaction map."""


def all_figures(findings: Findings) -> dict[str, Figure]:
    """Every figure that the artefacts allow, by file name."""
    with matplotlib.rc_context(STYLE):
        figures = {"bits": bits_figure(findings), "loss_against_size": loss_against_size(findings)}
        if (compared := predicted_against_measured(findings)) is not None:
            figures["predicted_against_measured"] = compared
        if findings.pairs_GG.any():
            figures["interactions"] = interactions(findings)
        if findings.plan.times is not None:
            figures["subgraphs"] = partition_figure(findings)
        return figures


def predicted_against_measured(findings: Findings) -> Figure | None:
    """Measured over predicted loss increase with 95 % intervals, on equal logarithmic axes.

    None where nothing was measured, or no loss both rose and was predicted to.
    """
    figure, [axes] = panels(5.6, 5.0)
    drawn = _draw_link(findings, axes)
    stderr = findings.predicted_stderr
    for model, name, predicted, colour in _models(findings):
        rise = findings.rise(model)
        if rise is None or rise <= 0 or predicted <= 0:
            continue
        low, high = findings.rise_interval(model) or (rise, rise)
        low, reach = max(low, 0.05 * rise), Z95 * (stderr or 0.0) if model == "quantized" else 0.0
        reach = min(reach, 0.95 * predicted)
        axes.errorbar(
            [predicted], [rise], [[rise - low], [high - rise]], [reach] if reach else None,
            fmt="o", color=colour, capsize=4, label=name, zorder=4,
        )  # fmt: skip
        drawn += [(predicted, low), (predicted, high), (predicted - reach, rise), (predicted + reach, rise)]
    if not drawn:
        return None
    values = [value for point in drawn for value in point]
    limits = (min(values) / 1.5, max(values) * 1.5)
    axes.plot(limits, limits, "-", color=THEME["muted"], linewidth=1, label="predicted = measured", zorder=0)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    logarithmic(axes.xaxis)
    logarithmic(axes.yaxis)
    axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(f"predicted increase of {findings.objective_short}")
    axes.set_ylabel(f"measured increase of {findings.objective_short}")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def _draw_link(findings: Findings, axes: Axes) -> list[tuple[float, float]]:
    """Measured assignments, the curve through them and what it expects of the solution; points that were drawn."""
    link, expected = findings.link, findings.solution.get("expected_interval")
    if link is None:
        return []
    pairs = zip(link["predicted"], link["measured"], strict=True)
    points = [(float(x), float(y)) for x, y in pairs if x > 0 and y > 0]
    if not points:
        return []
    axes.plot(
        [x for x, _ in points], [y for _, y in points],
        "o", color=THEME["muted"], markersize=4, label="assignments around it, measured",
    )  # fmt: skip
    if "slope" in link:
        x_n = np.geomspace(min(x for x, _ in points), max(x for x, _ in points), 50)
        if link.get("scale") == "linear":
            y_n = link["intercept"] + link["slope"] * x_n
        else:
            y_n = np.exp(link["intercept"] + link["slope"] * np.log(x_n))
        axes.plot(x_n, y_n, "--", color=THEME["muted"], linewidth=1, label="curve fitted to them")
    if expected is not None and findings.increase > 0:
        low, high = (end - link.get("loss0", 0.0) for end in expected)
        if low > 0:
            axes.plot(
                [findings.increase] * 2, [low, high],
                "-", color=THEME["ours"], alpha=0.35, linewidth=9, solid_capstyle="butt", label="expected, 90 %",
            )  # fmt: skip
            points += [(findings.increase, low), (findings.increase, high)]
    return points


def _models(findings: Findings) -> list[tuple[str, str, float, str]]:
    """(model, name, predicted increase, colour) of what evaluation measured."""
    if findings.evaluation is None:
        return []
    name = findings.evaluation["uniform_format"]
    uniform = findings.solution["uniform"].get(name)
    found = [("quantized", "this assignment, measured", findings.increase, THEME["ours"])]
    if uniform is not None:
        predicted = uniform["predicted_loss"] - findings.quadratic.loss0
        found.append(("uniform", f"uniform {name}, measured", predicted, THEME["uniform"]))
    return found


def interactions(findings: Findings) -> Figure:
    """Heat map of the interactions between groups at their chosen formats."""
    groups, pairs_GG = findings.plan.space.groups, findings.pairs_GG
    size = 3.2 + 0.14 * min(len(groups), MAX_NAMED)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained", facecolor="none")
    axes, key = figure.subplots(1, 2, width_ratios=(1, 0.035))
    axes.set_facecolor("none")
    axes.grid(False)
    strength = np.abs(pairs_GG[pairs_GG != 0])
    top = float(np.quantile(strength, 0.99)) if strength.size else 1.0
    axes.imshow(_tint(pairs_GG / top), aspect="auto", interpolation="nearest")
    starts = [g for g in range(1, len(groups)) if groups[g].block != groups[g - 1].block]
    for start in starts:
        axes.axhline(start - 0.5, color=THEME["line"], linewidth=0.8)
        axes.axvline(start - 0.5, color=THEME["line"], linewidth=0.8)
    named = _named(groups, starts)
    names = [name if len(name) <= 16 else f"…{name[-15:]}" for name in named.values()]
    axes.set_xticks(list(named), names, rotation=90, fontsize=8)
    axes.set_yticks(list(named), names, fontsize=8)
    axes.tick_params(length=0)
    scale = np.linspace(1, -1, 101)
    key.set_facecolor("none")
    key.imshow(_tint(scale)[:, None], aspect="auto", extent=(0, 1, -top, top))
    key.set_xticks([])
    key.yaxis.tick_right()
    key.grid(False)
    key.set_ylabel(f"{findings.objective_short} beyond the sum of each alone")
    key.yaxis.set_label_position("right")
    return figure


def _named(groups: tuple[Group, ...], starts: list[int]) -> dict[int, str]:
    """Labels of the axes by place: every group, or of many the first of each block, or some of them."""
    if len(groups) <= MAX_NAMED:
        return {g: short_name(group) for g, group in enumerate(groups)}
    places = [0, *starts]
    step = -(-len(places if starts else groups) // MAX_NAMED)
    kept = places[::step] if starts else range(0, len(groups), step)
    return {g: short_name(groups[g]) if groups[g].block is None else str(groups[g].block) for g in kept}


def _tint(value: np.ndarray) -> np.ndarray:
    """RGBA of values in [-1, 1]: clear at zero, so that any background shows through."""
    more, less = np.array(to_rgb(THEME["more"])), np.array(to_rgb(THEME["less"]))
    colour = np.where((value > 0)[..., None], more, less)
    return np.concatenate([colour, np.sqrt(np.abs(value).clip(0, 1))[..., None]], axis=-1)
