"""Values per item to the numbers of `evaluation.json`: means, intervals and paired differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmpq.evaluate.results import Values
from hpcmpq.evaluate.statistics import mean_with_interval, paired_differences, share_with_interval

LARGEST_EXPONENT = 700.0


def summarise(arrays: Mapping[str, Mapping[str, Values]]) -> dict[str, Any]:
    """The numbers of `data` at the top level, those of each task below `tasks`."""
    tasks = {name: summarise_task(models) for name, models in arrays.items() if name != "data"}
    return {**summarise_data(arrays["data"]), **({"tasks": tasks} if tasks else {})}


def summarise_data(models: Mapping[str, Values]) -> dict[str, Any]:
    """{metric: {model: value}} over all samples, `stderr` of each, `intervals` and `paired` differences.

    A metric is a mean over a sample's positions, then over samples; `perplexity` is the exponential of that of
    `ce`, and `accuracy` the share of labels that are right.
    """
    original = models["original"]
    names = [name for name in original if name not in ("correct", "labels")]
    rows = {name: {model: mean_with_interval(v[name]) for model, v in models.items()} for name in names}
    paired = {name: paired_differences({model: v[name] for model, v in models.items()}) for name in names}
    table = {name: {model: row["mean"] for model, row in models_.items()} for name, models_ in rows.items()}
    stderr = {
        f"{name}_stderr": {m: row["stderr"] for m, row in models_.items()} for name, models_ in rows.items()
    }
    intervals = {name: {m: row["interval"] for m, row in models_.items()} for name, models_ in rows.items()}
    loss = "ce" if "ce" in names else names[0]
    summary: dict[str, Any] = {"loss": table[loss], **table}
    if loss == "ce" and original["labels"].mean() > 1:
        summary["perplexity"] = {model: _exp(value) for model, value in table["ce"].items()}
        intervals["perplexity"] = {
            model: None if ends is None else [_exp(end) for end in ends]
            for model, ends in intervals["ce"].items()
        }
    elif loss == "ce":
        labelled = original["labels"] > 0
        correct = {model: v["correct"][labelled].astype(np.float64) for model, v in models.items()}
        shares = {model: share_with_interval(correct_N) for model, correct_N in correct.items()}
        summary["accuracy"] = {model: share["mean"] for model, share in shares.items()}
        stderr["accuracy_stderr"] = {model: share["stderr"] for model, share in shares.items()}
        intervals["accuracy"] = {model: share["interval"] for model, share in shares.items()}
        paired["accuracy"] = paired_differences(correct)
    intervals["loss"], paired["loss"] = intervals[loss], paired[loss]
    num_tokens = int(original["labels"].sum())
    return {**summary, **stderr, "intervals": intervals, "paired": paired, "num_tokens": num_tokens}


def summarise_task(models: Mapping[str, Values]) -> dict[str, Any]:
    """As `summarise_data`; metrics that are called accuracy are shares of items."""
    result: dict[str, Any] = {"num_items": len(next(iter(models["original"].values())))}
    intervals, paired = {}, {}
    for name in models["original"]:
        interval_of = share_with_interval if name.startswith("accuracy") else mean_with_interval
        values = {model: v[name].astype(np.float64) for model, v in models.items()}
        rows = {model: interval_of(value_N) for model, value_N in values.items()}
        result[name] = {model: row["mean"] for model, row in rows.items()}
        result[f"{name}_stderr"] = {model: row["stderr"] for model, row in rows.items()}
        intervals[name] = {model: row["interval"] for model, row in rows.items()}
        paired[name] = paired_differences(values)
    return {**result, "intervals": intervals, "paired": paired}


def _exp(value: float) -> float:
    return float(np.exp(min(value, LARGEST_EXPONENT)))
