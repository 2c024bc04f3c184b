"""Sequential sub-graphs and their measured times: a table, and a picture of them in the order they run in."""

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hpcmpq.report.findings import Findings, kind
from hpcmpq.report.tables import Column, Table
from hpcmpq.report.theme import STYLE, THEME

MAX_DRAWN = 60
"""Sub-graphs in the picture; of more, the first ones."""


def partition_table(findings: Findings) -> Table:
    """Every sub-graph in the order in which it runs, with its time unquantized and as chosen."""
    rows = tuple(
        (
            place + 1,
            ", ".join(part["groups"]),
            part["operations"],
            len(found["combinations"]) + 1,
            found["rule"],
            ", ".join(formats),
            1e3 * float(found["original"]["seconds"]),
            None if seconds is None else 1e3 * seconds,
        )
        for place, (part, found, formats, seconds) in enumerate(_chosen(findings))
    )
    columns = (
        Column("subgraph", "Sub-graph", "count"),
        Column("groups", "Groups"),
        Column("operations", "Operations", "count"),
        Column("combinations", "Combinations measured", "count"),
        Column("rule", "Rule"),
        Column("formats", "Chosen formats"),
        Column("original_ms", "Unquantized, ms", "number"),
        Column("chosen_ms", "As chosen, ms", "number"),
    )
    caption = (
        f"Sequential sub-graphs in {_phase(findings)[0]}: one runs after the other, so their times add up. A dash "
        "is a combination without kernels on the measured machine."
    )
    return Table("subgraphs", caption, columns, rows)


def partition_figure(findings: Findings) -> Figure:
    """The sub-graphs as boxes from first to last, each with its groups and a bar of its time."""
    chosen = _chosen(findings)[:MAX_DRAWN]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 0.9 + 0.34 * len(chosen)), layout="constrained", facecolor="none")
        boxes, bars = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
        for axes in (boxes, bars):
            axes.set_facecolor("none")
        box = {
            "boxstyle": "round,pad=0.3",
            "facecolor": "none",
            "edgecolor": THEME["muted"],
            "linewidth": 0.8,
        }
        for place, (part, _, _, _) in enumerate(chosen):
            boxes.text(0.5, place, _title(findings, part), ha="center", va="center", fontsize=8, bbox=box)
            if place:
                arrow = {"arrowstyle": "->", "color": THEME["muted"], "linewidth": 0.8}
                boxes.annotate("", (0.5, place - 0.28), (0.5, place - 0.72), arrowprops=arrow)
        boxes.set(xlim=(0, 1), ylim=(len(chosen) - 0.5, -0.5))
        boxes.axis("off")
        originals = [1e3 * float(found["original"]["seconds"]) for _, found, _, _ in chosen]
        places = list(range(len(chosen)))
        bars.barh(places, originals, 0.6, color=THEME["line"], label="unquantized")
        known = [(place, 1e3 * row[3]) for place, row in enumerate(chosen) if row[3] is not None]
        bars.barh([p for p, _ in known], [s for _, s in known], 0.3, color=THEME["ours"], label="as chosen")
        bars.set_yticks([])
        bars.set_xlabel(f"ms, {_phase(findings)[0]}")
        bars.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
    return figure


def _phase(findings: Findings) -> tuple[str, dict[str, Any]]:
    """The first measured phase, which latency_s begins with."""
    times = findings.plan.times
    assert times is not None
    return next(iter(times["phases"].items()))


def _chosen(
    findings: Findings,
) -> list[tuple[dict[str, Any], dict[str, Any], list[str], float | None]]:
    """(part, its measurements, chosen formats, seconds or None) of every sub-graph, in order."""
    _, values = _phase(findings)
    assignment = findings.solution["assignment"]
    rows = []
    for part in values["parts"]:
        if part["groups"]:
            found = values["classes"][part["class"]]
            formats = [assignment[name] for name in part["groups"]]
            seconds = [row["seconds"] for row in found["combinations"] if row["formats"] == formats]
            rows.append((part, found, formats, float(seconds[0]) if seconds else None))
    return rows


def _title(findings: Findings, part: dict[str, Any]) -> str:
    """The sub-graph's block and the last parts of its groups' names."""
    groups = {group.name: group for group in findings.plan.space.groups}
    members = [groups[name] for name in part["groups"]]
    blocks = {group.block for group in members}
    where = f"{blocks.pop()}: " if len(blocks) == 1 and None not in blocks else ""
    text = where + ", ".join(kind(group).rsplit(".", 1)[-1] for group in members)
    return text if len(text) < 60 else text[:57] + "..."
