"""Paired differences of an evaluation: which there are, and what they say."""

from collections.abc import Iterator
from typing import Any, Literal

Verdict = Literal["passes", "take care", "fails", "open"]


def judge(found: dict[str, Any], higher_is_better: bool) -> tuple[Verdict, str]:
    """State and words of a paired difference of the quantized model to another."""
    low, high = found["interval"]
    if higher_is_better:
        low, high = -high, -low
    if high < 0:
        return "passes", "is better than with"
    if low > 0:
        return "fails", "is worse than with"
    return "take care", "cannot be told apart from that of"


def paired_with_uniform(evaluation: dict[str, Any]) -> Iterator[tuple[str | None, str, dict[str, Any]]]:
    """(task or None for the data, metric, difference to the uniform model)."""
    for metric, pairs in evaluation["paired"].items():
        yield None, metric, pairs["quantized - uniform"]
    for task, values in evaluation.get("tasks", {}).items():
        for metric, pairs in values["paired"].items():
            yield task, metric, pairs["quantized - uniform"]
