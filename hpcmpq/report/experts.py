"""How many tokens the experts of a mixture were given by samples, in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FEW_TOKENS = 100
"""Tokens below which what is measured of an expert, and its standard error, rest on little."""


def tokens_of_experts(counts_LE: np.ndarray | Sequence[Sequence[int]]) -> tuple[bool, str]:
    """Whether every expert had enough tokens, and a sentence without its end.

    Args:
        counts_LE: Tokens by layer and expert, int [L, E].

    Example:
        >>> enough, sentence = tokens_of_experts(np.array([[500, 12], [300, 212]]))
        >>> enough, sentence.partition(", the fewest")[0]
        (False, '12 to 500 calibration tokens went to each of 2 experts in 2 layers; 1 had fewer than 100')
    """
    tokens_LE = np.asarray(counts_LE)
    num_layers, num_experts = tokens_LE.shape
    sentence = (
        f"{tokens_LE.min():,} to {tokens_LE.max():,} calibration tokens went to each of {num_experts} experts in "
        f"{num_layers} layers"
    )
    few = int((tokens_LE < FEW_TOKENS).sum())
    if not few:
        return True, sentence
    layer, expert = np.unravel_index(int(tokens_LE.argmin()), tokens_LE.shape)
    return False, (
        f"{sentence}; {few} had fewer than {FEW_TOKENS}, the fewest expert {expert} of mixture {layer} in the model's "
        "order: what is measured of them, and its standard errors, rest on little"
    )


def balance_sentence(values: Mapping[str, Any]) -> str:
    """What `calibration.balance_experts` chose, in a sentence.

    Args:
        values: `balanced` of a plan.

    Example:
        >>> balance_sentence({"num_candidates": 64, "chosen": [0, 3], "fewest_tokens_first": 7, "fewest_tokens": 31})
        'rounding is fitted on 2 of 64 candidates: the least used expert has 31 tokens, 7 with the first 2'
    """
    count = len(values["chosen"])
    return (
        f"rounding is fitted on {count:,} of {values['num_candidates']:,} candidates: the least used expert has "
        f"{values['fewest_tokens']:,} tokens, {values['fewest_tokens_first']:,} with the first {count:,}"
    )
