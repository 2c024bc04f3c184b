"""Findings as plain tables: shown on the page and written as CSV."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmpq.report.findings import Findings, kind
from hpcmpq.wording import label


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Header of the CSV file.
        title: Header on the page, with its unit.
        style: How `hpcmpq.report.display.show` writes a value of it; "bar" for a share with a bar,
            "prose" for words that need room.
        end: Whether the page shows it as an end of the interval of the column before.
    """

    name: str
    title: str
    style: str = "text"
    end: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of plain values; None is a value that was not measured.

    Attributes:
        name: File name without suffix.
        caption: What it shows, in one sentence.
        columns: One per value of a row; the first names the row.
        rows: The values.
        emphasis: Index of the row that the report is about, or None.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    emphasis: int | None = None


def comparison_table(findings: Findings) -> Table:
    """Size and loss of the original, the solution and every uniform format, smallest first."""
    solution, evaluation = findings.solution, findings.evaluation
    cost_columns = (
        Column("weight_bits", "Bits per weight", "bits"),
        Column("average_bits", "… with scales", "bits"),
        Column("size_bytes", "Checkpoint", "bytes"),
    )
    quality = [name for name in ("perplexity", "accuracy") if evaluation is not None and name in evaluation]
    columns = (
        Column("model", "Model"),
        *cost_columns,
        Column("size_ratio", "Smaller than bf16", "ratio"),
        Column("predicted_loss", f"Predicted {findings.objective_short}", "loss"),
        Column("measured_loss", f"Measured {findings.objective_short}", "loss"),
        *(Column(name, name.capitalize(), "share" if name == "accuracy" else "loss") for name in quality),
    )
    numel = sum(group.numel for group in findings.plan.space.groups)
    bf16_bytes = findings.plan.fixed_bytes + 2 * numel
    original = {"weight_bits": 16.0, "average_bits": 16.0, "size_bytes": bf16_bytes}

    def row(
        name: str, costs: dict[str, float], predicted: float | None, model: str | None
    ) -> tuple[Any, ...]:
        measured = evaluation is not None and model is not None
        return (
            name,
            *(costs[column.name] for column in cost_columns),
            bf16_bytes / costs["size_bytes"],
            predicted,
            findings.measured(model) if measured and model else None,
            *(evaluation[name][model] if measured and evaluation else None for name in quality),
        )

    measured_uniform = (evaluation or {}).get("uniform_format")
    rows = [
        row(
            f"uniform {name}",
            uniform["costs"],
            uniform["predicted_loss"],
            "uniform" if name == measured_uniform else None,
        )
        for name, uniform in solution["uniform"].items()
    ]
    ours = row("this assignment", solution["costs"], solution["predicted_loss"], "quantized")
    rows = sorted([*rows, ours], key=lambda values: values[3])
    rows.append(row("original, as bf16", original, findings.quadratic.loss0, "original"))
    caption = "Size and loss of this assignment beside every uniform format and the original, smallest first."
    return Table("comparison", caption, columns, tuple(rows), rows.index(ours))


def budget_table(findings: Findings) -> Table:
    """Every cost of the assignment, with its budget where there is one."""
    budgets, costs = findings.solution["budgets"], findings.solution["costs"]
    names = [*budgets, *(name for name in costs if name not in budgets)]
    rows = tuple(
        (label(name), costs[name], budgets.get(name), share_of(costs[name], budgets.get(name)))
        for name in names
    )
    columns = (
        Column("cost", "Cost"),
        Column("value", "Reached", "number"),
        Column("budget", "Budget", "number"),
        Column("used", "Used", "share"),
    )
    return Table("budgets", "What the assignment costs, and the limits it was given.", columns, rows)


def group_table(findings: Findings) -> Table:
    """Format and predicted loss of every group, in model order."""
    quadratic, choice_G = findings.quadratic, findings.choice_G
    together_G = 0.5 * findings.pairs_GG.sum(1)
    rows = tuple(
        (
            group.name,
            group.block,
            kind(group),
            group.numel,
            chosen.name,
            chosen.num_bits,
            float(quadratic.linear_P[option]),
            float(quadratic.stderr_linear_P[option]),
            float(together),
        )
        for group, chosen, option, together in zip(
            findings.plan.space.groups, findings.formats, choice_G, together_G, strict=True
        )
    )
    columns = (
        Column("group", "Group"),
        Column("block", "Block", "count"),
        Column("kind", "Kind"),
        Column("weights", "Weights", "count"),
        Column("format", "Format"),
        Column("num_bits", "Bits", "count"),
        Column("loss_alone", "Loss alone", "loss"),
        Column("loss_alone_stderr", "± standard error", "loss"),
        Column("loss_with_others", "Its half of interactions", "loss"),
    )
    return Table("groups", "Every group in model order with its format and predicted loss.", columns, rows)


def write_csv(table: Table, path: Path) -> None:
    """Write a table as CSV; a missing value is an empty cell."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow([column.name for column in table.columns])
        writer.writerows(_cells(row) for row in table.rows)


def _cells(row: Sequence[Any]) -> list[Any]:
    return ["" if value is None else value for value in row]


def share_of(value: float, whole: float | None) -> float | None:
    """Value / whole; None without a whole."""
    return value / whole if whole else None
