"""The lifted space of the doubly nonnegative relaxation: coordinates (1, x, s) and their subspace.

A feasible x with its budget slacks s = limit − cost·x is lifted to Y = v vᵀ with v = (1, d∘x, s), where the
scale d > 0 of the options is free (it preconditions). The vectors v with Σ_{p in g} x_p = 1 lie in a subspace
of dimension n = 1 + Σ (k_g − 1) with orthonormal basis L, so Y = L R Lᵀ with R positive semidefinite. Options
are padded to the same number k per group.

Axis letters: N lifted coordinates 1 + G·k + C, n subspace, G groups, k padded options, C budgets.
"""

from dataclasses import dataclass, replace

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof.threads import in_threads, slices

GROUPS, ROWS = 16, 64
"""Groups, and rows of a matrix, that a thread takes at a time: few enough to stay in the processor's cache."""


@dataclass(frozen=True)
class Lift:
    """Layout and subspace.

    Attributes:
        num_groups: G.
        width: k, the largest number of options.
        num_budgets: C.
        column_P: Padded position g·k + i of every option of the compact problem, int64 [P].
        scale_X: d, [G·k]; 1 where padded.
        basis_Gkm: Orthonormal basis of Σ z_p / d_p = 0 for every group, [G, k, k − 1], zero where padded.
        columns: Which of the G·(k − 1) basis columns exist, int64 [n − 1].
        centre_X: First basis vector without its slack part, orthogonal to the others, [1 + G·k].
        slack_Cn: The slacks of the basis vectors, [C, n].
        shrink_nC: F of T = I − F Fᵀ = (I + SᵀS)^(−1/2), which makes [V; S] T orthonormal, [n, C].
        trace: The largest |v|² of a feasible x.
    """

    num_groups: int
    width: int
    num_budgets: int
    column_P: np.ndarray
    scale_X: np.ndarray
    basis_Gkm: np.ndarray
    columns: np.ndarray
    centre_X: np.ndarray
    slack_Cn: np.ndarray
    shrink_nC: np.ndarray
    trace: float

    @property
    def padded(self) -> int:
        """G·k."""
        return self.num_groups * self.width

    @property
    def size(self) -> int:
        """N."""
        return 1 + self.padded + self.num_budgets

    @property
    def dimension(self) -> int:
        """n, of the subspace."""
        return 1 + len(self.columns)

    def _basis_times(self, a_NR: np.ndarray) -> np.ndarray:
        """[V; S]ᵀ A, [n, R]."""
        rank, dtype = a_NR.shape[1], a_NR.dtype
        out_nR = np.empty((self.dimension, rank), dtype=dtype)
        np.matmul(self.centre_X.astype(dtype), a_NR[: 1 + self.padded], out=out_nR[0])
        if self.width > 1:
            grouped_GkR = a_NR[1 : 1 + self.padded].reshape(self.num_groups, self.width, rank)
            basis_Gmk = self.basis_Gkm.astype(dtype).transpose(0, 2, 1)
            every = len(self.columns) == self.num_groups * (self.width - 1)
            shape = (self.num_groups, self.width - 1, rank)
            into_GmR = out_nR[1:].reshape(shape) if every else np.empty(shape, dtype=dtype)

            def times(part: slice) -> None:
                np.matmul(basis_Gmk[part], grouped_GkR[part], out=into_GmR[part])

            in_threads(times, slices(self.num_groups, GROUPS), self.dimension)
            if not every:
                out_nR[1:] = into_GmR.reshape(-1, rank)[self.columns]
        if self.num_budgets:
            shrink_nC, slack_Cn = self.shrink_nC.astype(dtype), self.slack_Cn.astype(dtype)
            slack_CR = a_NR[1 + self.padded :]
            shrunk_CR = shrink_nC.T @ out_nR + (shrink_nC.T @ slack_Cn.T) @ slack_CR
            left_nB, right_BR = np.hstack([slack_Cn.T, -shrink_nC]), np.vstack([slack_CR, shrunk_CR])

            def add(part: slice) -> None:
                out_nR[part] += left_nB[part] @ right_BR

            in_threads(add, slices(self.dimension, ROWS), self.dimension)
        return out_nR

    def down(self, a_NN: np.ndarray) -> np.ndarray:
        """Lᵀ a L of a symmetric matrix, exactly symmetric [n, n]."""
        down_nn = self._basis_times(np.ascontiguousarray(self._basis_times(a_NN).T))
        down_nn += down_nn.T
        down_nn *= 0.5
        return down_nn

    def up(self, u_nr: np.ndarray) -> np.ndarray:
        """L u, [N, r]."""
        rank = u_nr.shape[1]
        if self.num_budgets:
            shrink_nC = self.shrink_nC.astype(u_nr.dtype)
            u_nr = u_nr - shrink_nC @ (shrink_nC.T @ u_nr)
        out_Nr = np.empty((self.size, rank), dtype=u_nr.dtype)
        full = np.zeros((self.num_groups * (self.width - 1), rank), dtype=u_nr.dtype)
        full[self.columns] = u_nr[1:]
        grouped = np.matmul(
            self.basis_Gkm.astype(u_nr.dtype), full.reshape(self.num_groups, self.width - 1, rank)
        )
        centre_X = self.centre_X.astype(u_nr.dtype)
        out_Nr[0] = centre_X[0] * u_nr[0]
        out_Nr[1 : 1 + self.padded] = grouped.reshape(self.padded, rank) + centre_X[1:, None] * u_nr[0]
        out_Nr[1 + self.padded :] = self.slack_Cn.astype(u_nr.dtype) @ u_nr
        return out_Nr


def make_lift(compact: Compact, cost_CP: np.ndarray, limit_C: np.ndarray, scale_P: np.ndarray) -> Lift:
    """The lifted layout of a problem with budgets cost_CP @ x ≤ limit_C (both ≥ 0) and option scales d."""
    size_G = np.diff(compact.offset_H)
    num_groups, width, num_budgets = len(size_G), int(size_G.max()), len(limit_C)
    position_P = np.arange(compact.num_options) - compact.offset_H[:-1][compact.group_P]
    column_P = compact.group_P * width + position_P
    scale_X = np.ones(num_groups * width)
    scale_X[column_P] = scale_P
    inverse_X = np.zeros(num_groups * width)
    inverse_X[column_P] = 1.0 / scale_P
    inverse_Gk = inverse_X.reshape(num_groups, width)
    basis_Gkm = np.zeros((num_groups, width, width - 1))
    for size in np.unique(size_G):
        these = np.flatnonzero(size_G == size)
        frame = np.zeros((len(these), size, size))
        frame[:, :, 0] = inverse_Gk[these, :size]
        frame[:, np.arange(size - 1), np.arange(1, size)] = 1.0
        basis_Gkm[these, :size, : size - 1] = np.linalg.qr(frame)[0][:, :, 1:]
    columns = np.flatnonzero((np.arange(width - 1)[None, :] < size_G[:, None] - 1).ravel())
    centre_X = np.append(1.0, (inverse_Gk / (inverse_Gk**2).sum(axis=1, keepdims=True)).ravel())
    centre_X /= np.linalg.norm(centre_X)
    trace = 1.0 + float(np.maximum.reduceat(scale_P**2, compact.offset_H[:-1]).sum())
    bare = Lift(
        num_groups, width, 0, column_P, scale_X, basis_Gkm, columns, centre_X,
        np.zeros((0, 1 + len(columns))), np.zeros((1 + len(columns), 0)), trace,
    )  # fmt: skip
    if num_budgets == 0:
        return bare
    rows_CX = np.zeros((num_budgets, 1 + num_groups * width))
    rows_CX[:, 0] = limit_C
    rows_CX[:, 1 + column_P] = -cost_CP / scale_P
    slack_Cn = bare._basis_times(rows_CX.T).T
    eigenvalue, vector = np.linalg.eigh(slack_Cn @ slack_Cn.T)
    eigenvalue = np.maximum(eigenvalue, 1e-12)  # the factor tends to √½ at zero
    factor = np.sqrt((1.0 - 1.0 / np.sqrt(1.0 + eigenvalue)) / eigenvalue)
    return replace(
        bare,
        num_budgets=num_budgets,
        slack_Cn=slack_Cn,
        shrink_nC=slack_Cn.T @ (vector * factor),
        trace=trace + float((limit_C**2).sum()),
    )
