"""Means over samples, and over their tokens, with standard errors and 95 % intervals, alone and paired."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from hpcmpq.evaluate.results import Values
from hpcmpq.evaluate.tails import quantile

CONFIDENCE = 0.95

COUNTS = ("correct", "labels", "agreements", "kl_counts")
"""Values of a sample that count positions; all others are means over its positions."""


def mean_with_interval(value_N: np.ndarray) -> dict[str, Any]:
    """Mean of independent samples, its standard error s/√N and Student's t interval; no interval below N = 2.

    Example:
        >>> [round(end, 3) for end in mean_with_interval(np.array([1.0, 2.0, 3.0]))["interval"]]
        [-0.484, 4.484]
    """
    count = len(value_N)
    mean = float(value_N.mean())
    if count < 2:
        return {"mean": mean, "stderr": 0.0, "interval": None, "num_samples": count}
    stderr = float(value_N.std(ddof=1) / math.sqrt(count))
    reach = t_quantile((1 + CONFIDENCE) / 2, count - 1) * stderr
    return {"mean": mean, "stderr": stderr, "interval": [mean - reach, mean + reach], "num_samples": count}


def weighted_mean_with_interval(value_N: np.ndarray, weight_N: np.ndarray) -> dict[str, Any]:
    """Σ w y / Σ w of independent samples of which each weighs as much as it has tokens, say.

    As a ratio of two means it has the standard error of the mean of w (y − mean) over the mean of w. Equal weights
    give `mean_with_interval`.

    Source: Cochran, Sampling Techniques (1977), section 2.11.

    Example:
        >>> weighted_mean_with_interval(np.array([1.0, 2.0]), np.array([3, 1]))["mean"]
        1.25
    """
    share_N = weight_N / weight_N.mean()
    mean = float((share_N * value_N).mean())
    around = mean_with_interval(share_N * (value_N - mean))
    ends = around["interval"]
    reach = None if ends is None else (ends[1] - ends[0]) / 2
    return {
        **around,
        "mean": mean,
        "interval": None if reach is None else [mean - reach, mean + reach],
    }


def share_with_interval(correct_N: np.ndarray) -> dict[str, Any]:
    """Share of ones among zeros and ones, with Wilson's score interval, which stays inside [0, 1].

    Source: Wilson, J. Am. Stat. Assoc. 22 (1927) 209.

    Example:
        >>> [round(end, 3) for end in share_with_interval(np.array([1.0, 1.0, 1.0, 1.0]))["interval"]]
        [0.51, 1.0]
    """
    count, share = len(correct_N), float(correct_N.mean())
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    stderr = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else 0.0
    interval = [max(0.0, middle - reach), min(1.0, middle + reach)]
    return {"mean": share, "stderr": stderr, "interval": interval, "num_samples": count}


def paired_difference(value_N: np.ndarray, other_N: np.ndarray) -> dict[str, Any]:
    """Mean of value − other on the same samples, far more precise than the difference of two means.

    Returns:
        As `mean_with_interval`, and on how many samples the value is higher, lower and equal.
    """
    difference_N = value_N - other_N
    result = mean_with_interval(difference_N)
    return {
        "difference": result.pop("mean"),
        **result,
        "num_higher": int((difference_N > 0).sum()),
        "num_lower": int((difference_N < 0).sum()),
        "num_equal": int((difference_N == 0).sum()),
    }


def paired_differences(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The quantized model against the original and the uniform one, from {model: values of samples}."""
    return {
        f"quantized - {other}": paired_difference(values["quantized"], values[other])
        for other in ("original", "uniform")
    }


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t; exact for 1 and 2 degrees of freedom, else to 4e-3 and better.

    Source: Abramowitz and Stegun 26.7.5.

    Example:
        >>> round(t_quantile(0.975, 10), 3)
        2.228
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    x = NormalDist().inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))


LARGEST_EXPONENT = 700.0


def summarise(arrays: Mapping[str, Mapping[str, Values]]) -> dict[str, Any]:
    """The numbers of `data` at the top level, those of each task below `tasks`."""
    tasks = {name: summarise_task(models) for name, models in arrays.items() if name != "data"}
    return {**summarise_data(arrays["data"]), **({"tasks": tasks} if tasks else {})}


def summarise_data(models: Mapping[str, Values]) -> dict[str, Any]:
    """{metric: {model: value}} over all samples, `stderr` of each, `intervals` and `paired` differences.

    A metric is a mean over a sample's positions that count, then over samples, which weigh alike; `perplexity` is
    the exponential of the mean of `ce` over all tokens, and `accuracy` the share of labels that are right. Over all
    tokens, `top1_agreement` is the share whose likeliest output is the original's, `kl_p99` the 99th percentile of the
    divergence.
    """
    original = models["original"]
    names = [name for name in original if name not in COUNTS]
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
        by_token = {m: weighted_mean_with_interval(v["ce"], v["labels"]) for m, v in models.items()}
        summary["perplexity"] = {model: _exp(row["mean"]) for model, row in by_token.items()}
        intervals["perplexity"] = {
            model: None if row["interval"] is None else [_exp(end) for end in row["interval"]]
            for model, row in by_token.items()
        }
    elif loss == "ce":
        correct = {model: v["correct"].astype(np.float64) for model, v in models.items()}
        shares = {model: share_with_interval(correct_N) for model, correct_N in correct.items()}
        summary["accuracy"] = {model: share["mean"] for model, share in shares.items()}
        stderr["accuracy_stderr"] = {model: share["stderr"] for model, share in shares.items()}
        intervals["accuracy"] = {model: share["interval"] for model, share in shares.items()}
        paired["accuracy"] = paired_differences(correct)
    if "agreements" in original:
        weigh = {
            m: weighted_mean_with_interval(v["agreements"] / v["labels"], v["labels"])
            for m, v in models.items()
        }
        summary["top1_agreement"] = {model: row["mean"] for model, row in weigh.items()}
        stderr["top1_agreement_stderr"] = {model: row["stderr"] for model, row in weigh.items()}
        intervals["top1_agreement"] = {model: row["interval"] for model, row in weigh.items()}
        summary["kl_p99"] = {model: quantile(v["kl_counts"].sum(0), 0.99) for model, v in models.items()}
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
