"""Choosing samples of a pool, one set after the other: new content only, which shares little with earlier sets."""

import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np

from hpcmpq.models.data.overlap import MOST_SHARED, shared_tokens
from hpcmpq.models.data.samples import Samples
from hpcmpq.settings import Config

_log = logging.getLogger(__name__)

REPEATED = "with repeated content"
UNCOUNTED = "without a position that counts"
OVERLAPPING = "with half or more of their tokens in earlier sets"
"""Why samples are passed over."""

ROUNDING_SHARE = 4
"""Samples that rounding is fitted on by default, for every calibration sample: Σxxᵀ of few tokens is fitted to them."""

CANDIDATES = 4
"""Samples that ``calibration.balance_experts`` chooses among, for every one that it takes."""


def num_rounding_samples(config: Config) -> int:
    """Samples that error-compensated rounding wants; none without it."""
    if config.quantizer.rounding != "gptq":
        return 0
    return config.calibration.rounding_samples or ROUNDING_SHARE * config.calibration.num_samples


def num_rounding_candidates(config: Config) -> int:
    """Samples that those are chosen among, if there are as many."""
    return num_rounding_samples(config) * (CANDIDATES if config.calibration.balance_experts else 1)


def take(
    pool: Samples,
    order: Iterator[int],
    wanted: int,
    taken: set[str],
    passed: Counter[str],
    seen: np.ndarray | None = None,
    spare: list[int] | None = None,
) -> list[int]:
    """The next indices, up to `wanted`, of samples with new content; counts in `passed` why others are not.

    Those that share too much with what is `seen` go to `spare`.
    """
    chosen: list[int] = []
    while len(chosen) < wanted and (index := next(order, None)) is not None:
        content = pool[index].trimmed().content_hash(0)  # whatever the longest sample of its pool
        if not pool.counts(index):
            passed[UNCOUNTED] += 1
        elif content in taken:
            passed[REPEATED] += 1
        elif seen is not None and spare is not None and shared_tokens(pool, index, seen) >= MOST_SHARED:
            taken.add(content)
            passed[OVERLAPPING] += 1
            spare.append(index)
        else:
            taken.add(content)
            chosen.append(index)
    return chosen


def after_all(spare: list[int], count: int, passed: Counter[str]) -> list[int]:
    """Up to `count` of the samples that were spared, which there are no others for."""
    chosen = spare[:count]
    del spare[:count]
    passed[OVERLAPPING] -= len(chosen)
    return chosen


def take_for_rounding(
    pool: Samples, order: Iterator[int], config: Config, taken: set[str], seen: np.ndarray
) -> list[int]:
    """Samples for rounding, or to choose them among, that share little with those that losses are measured on."""
    wanted = num_rounding_samples(config)
    chosen = take(pool, order, num_rounding_candidates(config), taken, Counter[str](), seen, [])
    if not chosen:
        _log.warning(
            "the data hold no further samples for quantizer.rounding gptq, which is fitted on the calibration samples: "
            "losses measured on them will be too low, most so of few bits; give more data or lower "
            "calibration.num_samples"
        )
    elif len(chosen) < wanted:
        _log.info(
            "quantizer.rounding gptq is fitted on %d samples instead of %d: there are no more",
            len(chosen),
            wanted,
        )
    return chosen
