"""Features φ of every option on every sample, and the sums Σ_n φφᵀ that methods of the form H = ΦᵀΦ / N share.

A unit of all groups adds its products up at once; a unit of some groups keeps its columns, and `reduce` multiplies
them with the other units' of the same samples. Rows add over samples, columns split over groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROWS_PER_STEP = 2**13
"""Feature rows multiplied in the features' own precision before the sum goes on in float64."""

COLUMNS_PER_STEP = 48
"""Columns of one product; a symmetric matrix needs the products from its diagonal down only."""


@dataclass(frozen=True)
class Features:
    """What the options of a unit (R columns) do to the samples of one pass.

    Attributes:
        loss_N: Loss of the original, float64 [N].
        increase_NR: Loss increase of each option alone, float64 [N, R].
        phi_NRF: Features; H_pq = mean over samples of φ_p · φ_q. float32 or float64 [N, R, F].
        kept_NR: Loss increase of each option with the original's choices of experts, float64 [N, R], where features
            are of these; None where the model chooses none.
        tokens_NLE: Tokens of each sample that each expert is given, int64 [N, L routers, E], where that is counted.
    """

    loss_N: np.ndarray
    increase_NR: np.ndarray
    phi_NRF: Tensor
    kept_NR: np.ndarray | None = None
    tokens_NLE: np.ndarray | None = None


def gram(first_RF: Tensor, second_CF: Tensor | None = None) -> np.ndarray:
    """Φ₁Φ₂ᵀ [R, C] of one sample, or ΦΦᵀ: products of the features' dtype, added up in float64."""
    symmetric = second_CF is None
    columns_CF = first_RF if second_CF is None else second_CF
    total_RC = torch.zeros(len(first_RF), len(columns_CF), dtype=torch.float64, device=first_RF.device)
    for row in range(0, first_RF.shape[1], ROWS_PER_STEP):
        rows = slice(row, row + ROWS_PER_STEP)
        for start in range(0, len(columns_CF), COLUMNS_PER_STEP):
            part = slice(start, start + COLUMNS_PER_STEP)
            rest = slice(start, None) if symmetric else slice(None)
            total_RC[rest, part] += first_RF[rest, rows] @ columns_CF[part, rows].T
    if symmetric:
        lower_RC = total_RC.tril()
        total_RC = lower_RC + lower_RC.tril(-1).T
    return total_RC.cpu().numpy()


def to_columns(parts: Iterable[Features]) -> dict[str, np.ndarray]:
    """A unit's columns as the arrays of a shard: `phi` [R, N, F], `increase` and perhaps `kept` [R, N], `loss` [N]."""
    loss, increase, phi, kept, tokens = [], [], [], [], []
    for part in parts:
        check_finite(part)
        loss.append(part.loss_N)
        increase.append(part.increase_NR.T)
        phi.append(part.phi_NRF.transpose(0, 1).cpu().numpy())
        kept += [] if part.kept_NR is None else [part.kept_NR.T]
        tokens += [] if part.tokens_NLE is None else [part.tokens_NLE.sum(0)]
    return {
        **({"kept": np.concatenate(kept, axis=1)} if kept else {}),
        **({"tokens": np.sum(tokens, axis=0)} if tokens else {}),
        "loss": np.concatenate(loss),
        "increase": np.concatenate(increase, axis=1),
        "phi": np.concatenate(phi, axis=1),
    }


def multiply(columns: dict[str, np.ndarray], other_RNF: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Σ_n φφ'ᵀ and the sum of its terms' squares, [R, C], of two units' columns; None for the unit's own."""
    phi_RNF = torch.from_numpy(columns["phi"])
    other = None if other_RNF is None else torch.from_numpy(other_RNF)
    terms = (
        gram(phi_RNF[:, n].contiguous(), None if other is None else other[:, n].contiguous())
        for n in range(phi_RNF.shape[1])
    )
    total = square = np.zeros(())
    for term in terms:
        total = total + term
        square = square + term**2
    return total, square


def check_finite(part: Features) -> None:
    """Raise `ValueError` if some option makes the outputs infinite or NaN."""
    known = (part.increase_NR, part.loss_N, *(() if part.kept_NR is None else (part.kept_NR,)))
    finite = all(np.isfinite(values).all() for values in known)
    if not (finite and bool(torch.isfinite(part.phi_NRF.sum()))):
        raise ValueError(
            "the model's outputs are not finite for some option; use model.dtype float32 or drop its format"
        )
