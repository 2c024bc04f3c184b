"""Super-blocks of GGUF files, byte for byte as ggml-common.h lays them out.

Shape letters: M rows, N super-blocks of all rows, G groups of one, L weights of a group.
"""

import numpy as np
from torch import Tensor

from hpcmpq.formats import Format
from hpcmpq.quantizers.codes import QParams


def to_super_blocks(codes_MK: Tensor, qparams: QParams, format: Format) -> np.ndarray:
    """Rows of super-blocks, uint8 [M, bytes of a row].

    Args:
        codes_MK: Codes, int8; K is a whole number of super-blocks.
        qparams: Of `hpcmpq.quantizers.super_blocks.choose`.
        format: Of type ``ggml``.
    """
    assert qparams.super_scale is not None and format.block is not None
    size = format.block[1]
    codes_NK = codes_MK.cpu().numpy().reshape(-1, size)
    parts = _PARTS[format.name](
        codes_NK,
        _multiples(qparams.scale, qparams.super_scale),
        _multiples(qparams.offset, qparams.super_offset),
    )
    offset = qparams.super_offset
    halves = {"d": qparams.super_scale, "m": offset, "-m": None if offset is None else -offset}
    blocks = [_half(halves[part]) if isinstance(part, str) else part.astype(np.uint8) for part in parts]
    return np.concatenate(blocks, axis=1).reshape(len(codes_MK), -1)


def _q2_k(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    return [s | m << 4, _in_turns(q.reshape(-1, 2, 4, 32), 2), "d", "m"]


def _q3_k(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    code, six = q + 4, s + 32
    high = _in_turns((code >> 2).reshape(-1, 1, 8, 32), 1)
    low = _in_turns((code & 3).reshape(-1, 2, 4, 32), 2)
    scales = [six[:, :8] & 15 | (six[:, 8:] & 15) << 4, _in_turns((six >> 4).reshape(-1, 1, 4, 4), 2)]
    return [high, low, *scales, "d"]


def _q4_k(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    return ["d", "m", *_six_bits(s, m), _in_turns(q.reshape(-1, 4, 2, 32), 4)]


def _q5_k(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    high = _in_turns((q >> 4).reshape(-1, 1, 8, 32), 1)
    return ["d", "m", *_six_bits(s, m), high, _in_turns((q & 15).reshape(-1, 4, 2, 32), 4)]


def _q6_k(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    code = q + 32
    low = _in_turns((code & 15).reshape(-1, 2, 2, 64), 4)
    return [low, _in_turns((code >> 4).reshape(-1, 2, 4, 32), 2), s & 255, "d"]


def _iq4_xs(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    six = s + 32
    high = ((six >> 4) << 2 * np.arange(8)).sum(1, keepdims=True)
    low = _in_turns((six & 15).reshape(-1, 4, 2, 1), 4)
    return ["d", high & 255, high >> 8, low, _in_turns(q.reshape(-1, 8, 2, 16), 4)]


def _iq4_nl(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    return ["d", _in_turns(q.reshape(-1, 1, 2, 16), 4)]


def _q4_1(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    return ["d", "-m", _in_turns(q.reshape(-1, 1, 2, 16), 4)]


def _q5_1(q: np.ndarray, s: np.ndarray, m: np.ndarray) -> list:
    high = np.packbits((q >> 4).astype(np.uint8), axis=-1, bitorder="little")
    return ["d", "-m", high, _in_turns((q & 15).reshape(-1, 1, 2, 16), 4)]


_PARTS = {
    "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "iq4_xs": _iq4_xs, "iq4_nl": _iq4_nl,
    "q4_1": _q4_1, "q5_1": _q5_1,
}  # fmt: skip
"""What each type stores in order: bytes, and ``d`` and ``m``, the float16 numbers of scales and offsets (``-m``: with
the other sign, a number to add)."""


def _in_turns(fields: np.ndarray, num_bits: int) -> np.ndarray:
    """Fields [N, C, T, W] as bytes [N, C·W]: the T fields of a place lie side by side in one byte, first lowest."""
    shift = num_bits * np.arange(fields.shape[2])[:, None]
    return (fields << shift).sum(2).reshape(len(fields), -1)


def _six_bits(s: np.ndarray, m: np.ndarray) -> list[np.ndarray]:
    """Eight scales and eight offsets of 6 bits in 12 bytes: two high bits of the last four above the first four."""
    return [
        s[:, :4] | (s[:, 4:] >> 4) << 6,
        m[:, :4] | (m[:, 4:] >> 4) << 6,
        s[:, 4:] & 15 | (m[:, 4:] & 15) << 4,
    ]


def _multiples(x_MS: Tensor | None, unit_MB: Tensor | None) -> np.ndarray:
    """The small integers [N, G], int64; none where there is no unit."""
    if x_MS is None or unit_MB is None:
        return np.zeros((0, 0), np.int64)
    unit_N1 = unit_MB.double().cpu().numpy().reshape(-1, 1)
    x_NG = x_MS.double().cpu().numpy().reshape(len(unit_N1), -1)
    return np.rint(x_NG / np.where(unit_N1 != 0, unit_N1, 1.0)).astype(np.int64)


def _half(x_MB: Tensor | None) -> np.ndarray:
    assert x_MB is not None
    return x_MB.cpu().numpy().reshape(-1, 1).astype("<f2").view(np.uint8)
