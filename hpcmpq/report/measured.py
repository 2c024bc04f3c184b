"""What evaluation measured, with intervals, on the data and on every task: shown on the page and written as CSV."""

from collections.abc import Mapping
from typing import Any

from hpcmpq.report.findings import Findings
from hpcmpq.report.tables import Column, Table

METRICS = {
    "kl": "KL divergence",
    "mse": "squared distance",
    "ce": "cross-entropy",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "top1_agreement": "top-1 agreement",
    "kl_p99": "KL, worst 1 % of tokens",
    "accuracy_normalized": "accuracy by length",
    "loss": "−log p of the answer",
}
"""How metrics are called; those of a harness keep their own names."""

PAIRS = ("quantized - original", "quantized - uniform")


def measured_table(findings: Findings) -> Table | None:
    """Every metric of the data and of each task; None if nothing was measured, or by an older version."""
    evaluation = findings.evaluation
    if evaluation is None or "paired" not in evaluation:
        return None
    names = ("kl", "mse", "ce", "perplexity", "accuracy", "top1_agreement", "kl_p99")
    rows = [_row("data", name, evaluation) for name in names if name in evaluation]
    for task, values in evaluation.get("tasks", {}).items():
        rows += [_row(task, name, values) for name in values["paired"]]
    columns = (
        Column("metric", "Metric"),
        Column("where", "Measured on"),
        Column("original", "Original", "loss"),
        Column("quantized", "This assignment", "loss"),
        Column("low", "from", "loss", end=True),
        Column("high", "to", "loss", end=True),
        Column("uniform", f"Uniform {evaluation['uniform_format']}", "loss"),
        Column("against_original", "Minus original", "signed"),
        Column("against_original_low", "from", "loss", end=True),
        Column("against_original_high", "to", "loss", end=True),
        Column("against_uniform", "Minus uniform", "signed"),
        Column("against_uniform_low", "from", "loss", end=True),
        Column("against_uniform_high", "to", "loss", end=True),
    )
    caption = (
        "Measured quality with 95 % intervals. Differences are taken sample by sample, so they are known better than "
        "the values themselves."
    )
    return Table("measured", caption, columns, tuple(rows))


def _row(where: str, metric: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    ends = values["intervals"].get(metric, {}).get("quantized") or (None, None)
    pairs: list[Any] = []
    for pair in PAIRS:
        found = values["paired"].get(metric, {}).get(pair, {})
        pairs += [found.get("difference"), *(found.get("interval") or (None, None))]
    means = values[metric]
    name = METRICS.get(metric, metric)
    return (name, where, means["original"], means["quantized"], *ends, means["uniform"], *pairs)
