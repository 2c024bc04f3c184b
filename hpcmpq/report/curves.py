"""Loss over size: the frontier with its bounds, the uniform curve, and what was measured, as a figure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from hpcmpq.formats import FORMATS
from hpcmpq.report.display import cost_title, show, show_cost
from hpcmpq.report.findings import Findings
from hpcmpq.report.theme import THEME, logarithmic, panels, point_of
from hpcmpq.report.what_if import alternatives, with_the_shown
from hpcmpq.wording import show_bytes

FAR = 1.6
"""Ratio of the costs of two neighbouring uniform formats above which nothing is said of what lies between."""

EXACT = 1e-9
SAME_COST = 0.02
"""Relative difference of two costs at which their losses can still be compared."""


def uniform_curve(findings: Findings) -> list[tuple[str, float, float]]:
    """(format, cost, predicted loss) of every uniform assignment, cheapest first."""
    cost = findings.size_cost
    points = [
        (name, float(uniform["costs"][cost]), float(uniform["predicted_loss"]))
        for name, uniform in findings.solution["uniform"].items()
        if cost in uniform["costs"]
    ]
    return sorted(points, key=lambda point: (point[1], FORMATS[point[0]].num_bits))


def below_uniform(findings: Findings, cost: float, increase: float | None) -> float | None:
    """1 − increase / the uniform curve's at that cost; None where no uniform format is near.

    Between two uniform formats the curve is straight on the logarithmic scale it is drawn on; that is no model, so
    formats that lie far apart are not joined.
    """
    loss0 = findings.quadratic.loss0
    points = [(x, y - loss0) for _, x, y in uniform_curve(findings) if y > loss0]
    x_n, y_n = (np.array(values) for values in _columns(points))
    if increase is None or len(points) < 2 or (np.diff(x_n) <= 0).any():
        return None
    if not x_n[0] * (1 - EXACT) <= cost <= x_n[-1] * (1 + EXACT):
        return None
    after = min(int(np.searchsorted(x_n, cost)), len(x_n) - 1)
    at_format = np.isclose(x_n, cost, rtol=EXACT, atol=0).any()
    if not at_format and x_n[after] > FAR * x_n[after - 1]:
        return None
    return float(1 - increase / np.exp(np.interp(cost, x_n, np.log(y_n))))


def loss_against_size(findings: Findings) -> Figure:
    """Loss increase over cost, and below it how far the frontier lies below the uniform curve."""
    saved = [] if findings.frontier is None else _savings(findings)
    figure, axes = panels(7.2, 5.4 if saved else 3.9, (2.2, 1) if saved else (1,))
    _draw_losses(findings, axes[0])
    if saved:
        _draw_savings(findings, axes[1], saved)
    axes[-1].set_xlabel(cost_title(findings.size_cost))
    if findings.size_cost == "size_bytes":
        axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_bytes(value)))
    return figure


def marks(findings: Findings, figure: Figure) -> list[list[float] | None]:
    """Where each of `with_the_shown` lies on the drawn figure, from left and top; None where it is not drawn."""
    loss0 = findings.quadratic.loss0
    return [
        point_of(figure, each.cost, each.predicted - loss0) if each.predicted > loss0 else None
        for each in with_the_shown(findings)
    ]


def curve_words(findings: Findings) -> str:
    """What the figure shows, for readers and for those who cannot see it."""
    uniform = uniform_curve(findings)
    if findings.frontier is None:
        return f"The curve joins {len(uniform)} uniform formats." if uniform else ""
    saved = [(x, share) for x, share, _ in _savings(findings) if np.isfinite(share)]
    count = len(findings.frontier["points"])
    text = f"The frontier was solved at {count} budgets"
    if not saved:
        return f"{text}."
    x, best = max(saved, key=lambda point: point[1])
    return (
        f"{text}; it lies furthest below the uniform curve at {show_cost(findings.size_cost, x)}, where its predicted "
        f"increase is {show(best, 'share')} lower."
    )


def _draw_losses(findings: Findings, axes: Axes) -> None:
    loss0 = findings.quadratic.loss0
    uniform = [(x, y - loss0, name) for name, x, y in uniform_curve(findings) if y > loss0]
    joined = [(x, y) for x, y, _ in uniform]
    for place in range(len(joined) - 1, 0, -1):
        if joined[place][0] > FAR * joined[place - 1][0]:
            joined.insert(place, (np.nan, np.nan))
    axes.plot(*_columns(joined), "o--", color=THEME["uniform"], markersize=5, label="uniform, predicted")
    for x, y, name in uniform:
        axes.annotate(name, (x, y), (6, 5), textcoords="offset points", color=THEME["muted"], fontsize=9)
    if findings.frontier is not None:
        points = [each for each in alternatives(findings) if each.predicted > loss0]
        drawn = [(each.cost, each.predicted - loss0) for each in points]
        axes.plot(*_columns(drawn), "-", color=THEME["ours"], label="frontier, predicted")
        proven = [
            (each.cost, each.predicted - loss0, each.bound - loss0)
            for each in points
            if each.bound is not None and each.bound > loss0
        ]
        if proven:
            x_n, y_n, bound_n = (list(values) for values in zip(*proven, strict=True))
            axes.plot(x_n, bound_n, ":", color=THEME["ours"], label="frontier, proven bound")
            axes.fill_between(x_n, bound_n, y_n, color=THEME["ours"], alpha=0.18, linewidth=0)
    _draw_this(findings, axes)
    axes.margins(x=0.07)
    axes.set_yscale("log")
    logarithmic(axes.yaxis)
    axes.set_ylabel(f"increase of {findings.objective_short}")
    axes.legend(loc="upper right")


def _draw_this(findings: Findings, axes: Axes) -> None:
    """The solution with its bound, and what was measured of it and of the uniform model."""
    loss0, cost = findings.quadratic.loss0, findings.size_cost
    reached, bound = findings.solution["costs"].get(cost), findings.solution["bound"]
    bound = None if findings.other_objective else bound
    evaluation = findings.evaluation or {}
    if reached is not None and findings.increase > 0:
        axes.plot(reached, findings.increase, "o", color=THEME["ours"], markersize=8, label="this assignment")
    if reached is not None and bound is not None and loss0 < bound < loss0 + 0.99 * findings.increase:
        axes.plot(reached, bound - loss0, "_", color=THEME["ours"], markersize=16, label="its proven bound")
    original = findings.measured("original")
    for model, x, colour, name in (
        ("quantized", reached, THEME["ours"], "this assignment, measured"),
        (
            "uniform",
            evaluation.get("uniform_costs", {}).get(cost),
            THEME["uniform"],
            f"uniform {evaluation.get('uniform_format')}, measured",
        ),
    ):
        measured = findings.measured(model)
        if measured is not None and original is not None and measured > original and x is not None:
            axes.plot(x, measured - original, "x", color=colour, markersize=9, markeredgewidth=2, label=name)


def _draw_savings(findings: Findings, axes: Axes, saved: list[tuple[float, float, float]]) -> None:
    axes.axhline(0, color=THEME["uniform"], linestyle="--", linewidth=1.5)
    x_n, share_n, most_n = (np.array(values) for values in zip(*saved, strict=True))
    axes.plot(x_n, -share_n, "-", color=THEME["ours"])
    axes.plot(x_n, -most_n, ":", color=THEME["ours"])
    axes.fill_between(x_n, -most_n, -share_n, color=THEME["ours"], alpha=0.18, linewidth=0)
    reached = findings.solution["costs"].get(findings.size_cost)
    share = None if reached is None else below_uniform(findings, reached, findings.increase)
    if reached is not None and share is not None:
        axes.plot(reached, -share, "o", color=THEME["ours"], markersize=8)
    measured = measured_against_uniform(findings)
    if reached is not None and measured is not None:
        change, low, high = measured
        axes.errorbar(
            [reached], [change], [[change - low], [high - change]],
            fmt="x", color=THEME["ours"], markersize=9, markeredgewidth=2, capsize=4,
        )  # fmt: skip
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("against uniform")


def measured_against_uniform(findings: Findings) -> tuple[float, float, float] | None:
    """Measured increase over that of the uniform model, less 1, and ends of its 95 % interval.

    None where the uniform model is not of nearly the same cost, or there are no paired differences.
    """
    rise, found = findings.rise("uniform"), findings.paired("quantized - uniform")
    reached = findings.solution["costs"].get(findings.size_cost)
    theirs = (findings.evaluation or {}).get("uniform_costs", {}).get(findings.size_cost)
    if (
        not rise
        or rise <= 0
        or found is None
        or found["interval"] is None
        or reached is None
        or theirs is None
    ):
        return None
    if abs(theirs - reached) > SAME_COST * reached:
        return None
    return found["difference"] / rise, found["interval"][0] / rise, found["interval"][1] / rise


def _savings(findings: Findings) -> list[tuple[float, float, float]]:
    """(cost, share below the uniform curve, at most that share by the bound) of every frontier point.

    A bound below the original's loss rules out nothing and is drawn as if it lay there. Shares are NaN, which breaks
    the line, where there is no curve; the list is empty if that is everywhere.
    """
    found, loss0 = [], findings.quadratic.loss0
    for each in alternatives(findings):
        share = below_uniform(findings, each.cost, each.predicted - loss0)
        least = None if each.bound is None else max(each.bound - loss0, 0.0)
        most = below_uniform(findings, each.cost, least)
        found.append((each.cost, _or_nan(share), _or_nan(most)))
    return found if any(np.isfinite(share) for _, share, _ in found) else []


def _or_nan(share: float | None) -> float:
    return float("nan") if share is None else share


def _columns(points: list[tuple]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
