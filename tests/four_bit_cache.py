"""vLLM's cache of 4 bits a number at a time, by what `v1/attention/ops/int4_per_token_head.py` of 0.32.0 says."""

import numpy as np
import torch

ONE = np.float32(1.0)


def signs(count: int) -> np.ndarray:
    """`_get_rht_signs`."""
    generator = torch.Generator(device="cpu")
    generator.manual_seed(0x9E3779B9)
    drawn = torch.bernoulli(torch.full((count,), 0.5), generator=generator)
    return (2.0 * drawn - 1.0).numpy()


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, halves to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def turned(head: np.ndarray, inverse: bool = False) -> np.ndarray:
    """`single_rht` of one head, in its own dtype as on a CPU."""
    size = len(head)
    block = size & -size
    flips = signs(block)
    parts = []
    for start in range(0, size, block):
        part = head[start : start + block]
        parts.append(butterfly(part) * flips if inverse else butterfly(part * flips))
    return np.concatenate(parts)


def butterfly(values: np.ndarray) -> np.ndarray:
    """`fast_hadamard_transform`."""
    found, half = list(values), 1
    while half < len(found):
        for start in range(0, len(found), 2 * half):
            for place in range(start, start + half):
                left, right = found[place], found[place + half]
                found[place], found[place + half] = left + right, left - right
        half *= 2
    return np.array(found, dtype=values.dtype)


def kept(head: np.ndarray) -> tuple[np.ndarray, int, np.float32]:
    """`reshape_and_cache_int4`: codes, the zero point and the scale that `_attn_packed` reads again."""
    values = to_bfloat16(turned(to_bfloat16(head)))
    low, high = values.min(), values.max()
    scale = max((high - low) / np.float32(15.0), np.float32(1e-6))
    zero = min(max(_away(-low / scale), 0), 15)
    inverse = ONE / scale
    codes = [min(max(_away(value * inverse + np.float32(zero)), 0), 15) for value in values]
    word = int(np.float32(scale).view(np.int32)) & -16 | zero & 0xF
    assert word & 0xF == zero
    return np.array(codes), zero, np.int32(word & -16).view(np.float32)


def _away(value: np.float32) -> int:
    half = np.float32(0.5)
    return int(value + half) if value >= 0 else int(value - half)


def seen(head: np.ndarray) -> np.ndarray:
    """The head that gives `_attn_packed`'s scores and outputs where queries and outputs are not turned."""
    codes, zero, scale = kept(head)
    block = np.float32(len(head) & -len(head))
    return turned((codes - zero).astype(np.float32) * scale, inverse=True) / block
