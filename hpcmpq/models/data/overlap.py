"""How much of a sample's text is in other samples already, wherever their windows begin: by hashed runs of tokens."""

import numpy as np

from hpcmpq.models.data.samples import Samples

RUN_LENGTH = 32
"""Consecutive tokens that two texts hardly share by chance."""

MOST_SHARED = 0.5
"""A sample of which this share of tokens or more is in earlier sets is dropped from a later one."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def run_hashes(tokens_T: np.ndarray) -> np.ndarray:
    """Hashes of all runs of `RUN_LENGTH` consecutive tokens, uint64 [T − 31]; 0 for a run of one token repeated.

    Rolling polynomials modulo 2⁶⁴ of mixed tokens. Blanks or padding in a row are no sign of the same text.

    Example:
        >>> first = run_hashes(np.arange(40))
        >>> second = run_hashes(np.arange(7, 60))
        >>> len(first), bool((first[7:] == second[:2]).all()), run_hashes(np.full(33, 5)).tolist()
        (9, True, [0, 0])
    """
    count = max(0, len(tokens_T) - RUN_LENGTH + 1)
    mixed_T = _mix(tokens_T.astype(np.uint64))
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(RUN_LENGTH):
        hashes = hashes * _FACTOR + mixed_T[place : place + count]
    changes_T = np.concatenate([[0, 0], np.cumsum(tokens_T[1:] != tokens_T[:-1])])[: len(tokens_T) + 1]
    hashes[changes_T[RUN_LENGTH : RUN_LENGTH + count] == changes_T[1 : count + 1]] = 0
    return hashes


def seen_runs(samples: Samples) -> np.ndarray:
    """Sorted hashes of the runs of all samples, uint64; empty where they are no token ids."""
    hashes = [run_hashes(_tokens(samples, n)) for n in range(len(samples))]
    found = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, dtype=np.uint64)
    return found[found != 0]


def shared_tokens(samples: Samples, n: int, seen: np.ndarray) -> float:
    """Share of the tokens of sample n that lie in a run that is among `seen`."""
    tokens_T = _tokens(samples, n)
    hashes = run_hashes(tokens_T)
    if not len(seen) or not len(hashes):
        return 0.0
    places = np.searchsorted(seen, hashes).clip(max=len(seen) - 1)
    starts = np.flatnonzero(seen[places] == hashes)
    inside_T = np.zeros(len(tokens_T) + 1, dtype=np.int64)
    inside_T[starts] += 1
    inside_T[starts + RUN_LENGTH] -= 1
    return float((np.cumsum(inside_T)[:-1] > 0).mean())


def _tokens(samples: Samples, n: int) -> np.ndarray:
    """Token ids of sample n without padding; none where its inputs are no token ids."""
    ids_NT, mask_NT = samples.inputs.get("input_ids"), samples.inputs.get("attention_mask")
    if ids_NT is None or ids_NT.ndim != 2 or ids_NT.is_floating_point():
        return np.zeros(0, dtype=np.int64)
    ids_T = ids_NT[n]
    if mask_NT is not None and mask_NT.shape == ids_NT.shape:
        ids_T = ids_T[mask_NT[n] != 0]
    return np.asarray(ids_T.cpu().numpy())


def _mix(x: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that spreads small ones (splitmix64)."""
    x = x + _FACTOR
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
