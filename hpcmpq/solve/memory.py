"""The most memory that the stages reduce and solve take, from the number of groups and options alone.

Axis letters: P options.
"""

from hpcmpq.settings import SolverConfig
from hpcmpq.solvers import OF_FULL_MODEL
from hpcmpq.solvers.memory import OTHER_BYTES, convex_bytes, lifted_bytes
from hpcmpq.solvers.quadratic import LARGEST_LIFT
from hpcmpq.space import SearchSpace

MODEL_MATRICES = 4.0
"""float64 matrices of all options beside the solver's: cross terms and standard errors, as measured and shrunk."""

REDUCE_MATRICES = 8.0
"""float64 matrices of all options while shards are added up and written."""


def solve_peak_bytes(space: SearchSpace, settings: SolverConfig, num_batches: int = 0) -> int:
    """Most bytes of stage solve, or of reduce before it, beyond what a process with their libraries has.

    Args:
        space: Groups and options.
        settings: Of the solver.
        num_batches: Calibration batches whose cross terms are kept apart.
    """
    matrix = 8.0 * space.num_options**2
    model, proof = (MODEL_MATRICES + 2.0 * num_batches) * matrix, OTHER_BYTES
    if settings.name in OF_FULL_MODEL and not settings.drop_cross_terms:
        lifted = space.num_options <= LARGEST_LIFT
        width = max(map(len, space.formats))
        proof = lifted_bytes(len(space.groups), width) if lifted else convex_bytes(space.num_options)
    return int(max(model + proof, (REDUCE_MATRICES + 2.0 * num_batches) * matrix + OTHER_BYTES))
