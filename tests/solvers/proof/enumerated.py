"""Small instances whose optimum is known by enumeration, as a bound of the compact problem sees them."""

from collections.abc import Iterator

import numpy as np

from bench.small_instances import Instance, least, random_instance
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve


def enumerated(count: int) -> Iterator[tuple[Instance, tuple[float, tuple[str, ...]], Compact, np.ndarray]]:
    """(instance, its least objective and where, compact form, that choice in it), unless presolve solves it."""
    for seed in range(count):
        instance = random_instance(seed)
        best, compact = least(instance), presolve(instance.problem())
        if best is None or not isinstance(compact, Compact) or compact.num_groups == 0:
            continue
        choice_G = compact.compress(instance.choice(best[1]))
        assert choice_G is not None
        yield instance, best, compact, choice_G
