"""Costs as the integers that CP-SAT takes."""

import numpy as np

COST_STEPS = 2.0**40
"""Integer steps in a budget's range where its costs have no common unit."""


def integer_costs(cost: np.ndarray, limit: float, num_terms: int, round_up: bool) -> tuple[np.ndarray, int]:
    """Integer costs and limit, which every choice within the limit keeps; rounded up, only such a choice keeps them.

    Args:
        cost: Of every option and cell of a joint table, finite float64.
        limit: In the same unit.
        num_terms: Costs that a choice adds up: one for each group and each table.
        round_up: Err on the side of the limit.
    """
    largest = float(np.abs(cost).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(cost), dtype=np.int64), 0 if limit >= 0 else -1
    unit = common_unit(cost)
    if unit is not None:
        steps = np.round(cost / unit)
        # What a choice's costs may be off by: at most 1e-10 of the largest for each, nothing where they are exact.
        slack = num_terms * float(np.abs(cost - steps * unit).max())
        slack += 4.0 * num_terms * float(np.finfo(np.float64).eps) * largest
        most = float(np.abs(steps).sum())  # more never binds, and might not fit into 64 bits
        room = (limit - slack) / unit if round_up else (limit + slack) / unit + 1e-9
        return steps.astype(np.int64), int(np.floor(np.clip(room, -most - 1.0, most)))
    unit = max(largest, abs(limit)) / COST_STEPS
    steps = np.ceil(cost / unit) if round_up else np.floor(cost / unit)
    return steps.astype(np.int64), int(np.floor(limit / unit))


def common_unit(cost: np.ndarray) -> float | None:
    """The largest u of which all costs are integer multiples (to 1e-10 of the largest), or None.

    Example:
        >>> common_unit(np.array([0.0, 6.0, 15.0]))
        3.0
    """
    values = np.unique(np.abs(cost[cost != 0]))
    if len(values) == 0:
        return None
    tolerance = 1e-10 * float(values[-1])
    unit = float(values[0])
    while unit > values[-1] / 2**30:
        rest = np.abs(values - unit * np.round(values / unit))
        rest = rest[rest > tolerance]
        if len(rest) == 0:
            return unit
        unit = float(rest.min())
    return None
