"""`quadratic_gpu`: the solver `quadratic` with the eigen-decompositions of its relaxation on a GPU, by torch.

They are most of a step's time from a thousand rows on. A step's matrix goes there and the vectors of positive
eigenvalues come back; bounds are certified on the host as always, so that no rounding of a GPU enters a proof.

Axis letters: n rows, r positive eigenvalues.
"""

from dataclasses import dataclass

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers.proof.positive_part import of_whole, positive_part
from hpcmpq.solvers.quadratic import QuadraticSolver

LEAST_ROWS = 1000
"""Rows from which the GPU is asked; a decomposition of fewer takes less than half a second on the host."""


class GpuSolver:
    """`QuadraticSolver` with its larger decompositions on a GPU."""

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The best assignment found, with a proven bound.

        Raises:
            ValueError: If the problem is malformed (see `presolve.validate`).
            UserError: If torch sees no GPU.
        """
        try:
            import torch
        except ModuleNotFoundError:
            raise UserError(
                "solver quadratic_gpu needs torch, which is not here; choose solver quadratic"
            ) from None
        if not torch.cuda.is_available():
            raise UserError(
                "solver quadratic_gpu needs a GPU and torch sees none here; choose solver quadratic, or give the job "
                "one, on Slurm by --slurm solve.gpus=1"
            )
        solver = QuadraticSolver(TorchPositivePart("cuda"))
        return solver.solve(problem, time_limit_s=time_limit_s, seed=seed, hint_G=hint_G)


@dataclass(frozen=True)
class TorchPositivePart:
    """`positive_part` by torch.

    Attributes:
        device: Where large matrices are decomposed; small ones stay on the host.
        least_rows: From how many rows on.
    """

    device: str
    least_rows: int = LEAST_ROWS

    def __call__(self, a_nn: np.ndarray, expected: int) -> tuple[np.ndarray, np.ndarray]:
        """The positive eigenvalues, [r], and their vectors, [n, r]; see `positive_part`."""
        if len(a_nn) < self.least_rows:
            return positive_part(a_nn, expected)
        import torch

        eigenvalue, vector = torch.linalg.eigh(torch.from_numpy(a_nn).to(self.device))
        return of_whole(eigenvalue.cpu().numpy(), vector.cpu().numpy())
