"""The nearest point of the relaxation's polyhedral set, block by block: products of simplices and boxes.

Axis letters: N lifted coordinates, X padded options G·k, G groups, k padded options, C budgets, B group pairs
i < j, E entries of a block k·k.
"""

from dataclasses import dataclass, replace

import numpy as np

from hpcmpq.solvers.proof.lift import Lift
from hpcmpq.solvers.proof.positive_part import PositivePart, positive_part
from hpcmpq.solvers.proof.relaxation import Relaxation
from hpcmpq.solvers.proof.threads import in_threads


def block_columns(lift: Lift) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices into [X, X] of every block of two groups i < j, and of its mirror, int64 [k·k, B] each."""
    width = lift.width
    first_B, second_B = np.triu_indices(lift.num_groups, 1)
    row, column = np.divmod(np.arange(width * width), width)
    rows = first_B[None, :] * width + row[:, None]
    columns = second_B[None, :] * width + column[:, None]
    return rows * lift.padded + columns, columns * lift.padded + rows


CHUNK = 1024
"""Blocks projected at a time: few enough that their arrays stay in the processor's cache."""


@dataclass(frozen=True)
class Blocks:
    """Some of the blocks of two groups i < j, one a column.

    Attributes:
        upper: Their entries' flat places in [X, X], int64 [k·k, B].
        lower: Those of their mirrors.
        weight_EB: d_p d_q of every entry.
        inverse_EB: 1 / (d_p d_q)².
        threshold_B: What the last projection subtracted, where the next one starts; −inf before the first.
        penalty: −inf where a pair is excluded, else zero, like `weight_EB`; None where none is.
    """

    upper: np.ndarray
    lower: np.ndarray
    weight_EB: np.ndarray
    inverse_EB: np.ndarray
    threshold_B: np.ndarray
    penalty: np.ndarray | None = None


class Projector:
    """Projects lifted matrices; keeps the index arrays of one relaxation, and what projects onto the cone."""

    def __init__(
        self, relaxation: Relaxation, dtype: type, positive_part: PositivePart = positive_part
    ) -> None:
        self.relaxation, self.lift = relaxation, relaxation.lift
        self.positive_part = positive_part
        self.dtype = dtype
        scale_X = self.lift.scale_X
        weight_Y: np.ndarray = np.outer(scale_X, scale_X).astype(dtype).ravel()
        upper, lower = block_columns(self.lift)
        parts = [slice(first, first + CHUNK) for first in range(0, upper.shape[1], CHUNK)]
        self.blocks = [
            Blocks(
                np.ascontiguousarray(upper[:, part]),
                np.ascontiguousarray(lower[:, part]),
                weight_Y[upper[:, part]],
                weight_Y[upper[:, part]] ** -2.0,
                np.full(upper[:, part].shape[1], -np.inf, dtype),
            )
            for part in parts
        ]
        scale_kG = scale_X.reshape(self.lift.num_groups, self.lift.width).T
        self.own_weight_kG: np.ndarray = (scale_kG**4 + 2.0 * scale_kG**2).astype(dtype)
        self.scale_X: np.ndarray = scale_X.astype(dtype)
        self.slack_limit_CX = (relaxation.slack_limit_CX * scale_X).astype(dtype)
        self.set_allowed(relaxation.allowed_XX)

    def set_allowed(self, allowed_XX: np.ndarray) -> None:
        """Exclude more pairs."""
        allowed_Y = allowed_XX.ravel()
        for place, blocks in enumerate(self.blocks):
            allowed = allowed_Y[blocks.upper]
            penalty: np.ndarray | None = None
            if not allowed.all():
                penalty = np.where(allowed, 0.0, -np.inf).astype(self.dtype)
            self.blocks[place] = replace(blocks, penalty=penalty)
        exists = np.diagonal(allowed_XX).reshape(self.lift.num_groups, self.lift.width).T
        self.own_penalty: np.ndarray = np.where(exists, 0.0, -np.inf).astype(self.dtype)

    def project(self, w_NN: np.ndarray) -> np.ndarray:
        """The nearest point of the polyhedral set to a symmetric matrix, [N, N]."""
        lift = self.lift
        padded, width = lift.padded, lift.width
        inner = slice(1, 1 + padded)
        out_NN = np.empty_like(w_NN)
        w_XX = np.ascontiguousarray(w_NN[inner, inner])
        out_XX = np.empty_like(w_XX)
        groups = np.arange(lift.num_groups)
        out_XX.reshape(lift.num_groups, width, lift.num_groups, width)[groups, :, groups] = 0.0
        from_Y, to_Y = w_XX.ravel(), out_XX.ravel()

        def project_blocks(blocks: Blocks) -> None:
            entries = from_Y[blocks.upper]
            entries *= blocks.weight_EB
            if blocks.penalty is not None:
                entries += blocks.penalty
            weight_EB = blocks.weight_EB**2
            entries, blocks.threshold_B[:] = simplex(
                entries, weight_EB, blocks.threshold_B, blocks.inverse_EB
            )
            entries *= blocks.weight_EB
            to_Y[blocks.upper] = entries
            to_Y[blocks.lower] = entries

        in_threads(project_blocks, self.blocks, lift.dimension)
        # A group's distribution appears three times: on the diagonal, in the first row and column.
        own_X = self.scale_X**2 * np.diagonal(w_XX) + 2.0 * self.scale_X * w_NN[0, inner]
        own_kG = own_X.reshape(lift.num_groups, width).T + self.own_penalty
        own_X = simplex(own_kG, self.own_weight_kG)[0].T.ravel()
        out_XX[np.arange(padded), np.arange(padded)] = self.scale_X**2 * own_X
        out_NN[inner, inner] = out_XX
        out_NN[0, inner] = out_NN[inner, 0] = self.scale_X * own_X
        out_NN[0, 0] = 1.0
        if lift.num_budgets:
            relaxation, slack = self.relaxation, slice(1 + padded, None)
            out_NN[slack, 0] = out_NN[0, slack] = np.clip(w_NN[slack, 0], 0.0, relaxation.slack_limit_C)
            out_NN[slack, inner] = np.clip(w_NN[slack, inner], 0.0, self.slack_limit_CX)
            out_NN[inner, slack] = out_NN[slack, inner].T
            roof_CC = np.outer(relaxation.slack_limit_C, relaxation.slack_limit_C)
            out_NN[slack, slack] = np.clip(w_NN[slack, slack], 0.0, roof_CC)
        return out_NN


def simplex(
    linear_EB: np.ndarray,
    weight_EB: np.ndarray,
    near_B: np.ndarray | None = None,
    inverse_EB: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The columns v ≥ 0, Σ v = 1 that minimise Σ ½ weight v² − linear v, and their thresholds; linear −inf gives 0.

    v = max(linear − t, 0) / weight with a threshold t per column, found by Newton's method from the left,
    where Σ v is convex and decreasing in t: it ends at the exact threshold after finitely many steps. A step from the
    right of it ends on its left, so any start will do, and a threshold of a similar column saves steps.

    Args:
        linear_EB: Linear terms, [E, B].
        weight_EB: Positive weights, [E, B].
        near_B: Where to start, [B]; −inf is none.
        inverse_EB: Of the weights, where it is known.
    """
    if inverse_EB is None:
        inverse_EB = 1.0 / weight_EB
    lowest = np.finfo(linear_EB.dtype).min
    least_B = np.maximum((linear_EB - weight_EB).max(axis=0), lowest)
    finite_EB = linear_EB
    if not np.isfinite(linear_EB.min(initial=0.0)):
        finite_EB = np.maximum(linear_EB, lowest)
    start_B = least_B if near_B is None else np.maximum(least_B, near_B)
    threshold_B = _newton_step(finite_EB, inverse_EB, start_B, least_B)
    open_B, part_EB, part_inverse_EB = np.arange(len(threshold_B)), finite_EB, inverse_EB
    for _ in range(len(linear_EB) + 1):
        then_B = threshold_B[open_B]
        now_B = _newton_step(part_EB, part_inverse_EB, then_B, least_B[open_B])
        rising = np.flatnonzero(now_B > then_B + 1e-6 * (1.0 + np.abs(then_B)))
        if len(rising) == 0:
            break
        open_B = open_B[rising]
        threshold_B[open_B] = now_B[rising]
        part_EB, part_inverse_EB = part_EB[:, rising], part_inverse_EB[:, rising]
    v_EB: np.ndarray = linear_EB - threshold_B
    np.maximum(v_EB, 0.0, out=v_EB)
    v_EB *= inverse_EB
    return v_EB, threshold_B


def _newton_step(
    linear_EB: np.ndarray, inverse_EB: np.ndarray, threshold_B: np.ndarray, least_B: np.ndarray
) -> np.ndarray:
    """Thresholds at which the entries above the given ones would sum to one, and at least the least, [B]."""
    active_EB = np.where(linear_EB > threshold_B, inverse_EB, 0.0)
    # None is active right of all, or where a weight is lost beside its linear term.
    mass_B = np.maximum(active_EB.sum(axis=0), np.finfo(active_EB.dtype).tiny)
    active_EB *= linear_EB
    new_B: np.ndarray = np.maximum((active_EB.sum(axis=0) - 1.0) / mass_B, least_B)
    return new_B
