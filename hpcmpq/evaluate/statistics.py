"""Means over samples with standard errors and 95 % intervals, alone and paired."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95


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
