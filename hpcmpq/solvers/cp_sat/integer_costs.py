"""Costs as the integers that CP-SAT takes."""

import numpy as np

COST_STEPS = 2.0**40
"""Integer steps in a budget's range where its costs have no common unit."""


def integer_costs(cost: np.ndarray, limit: float, num_groups: int, round_up: bool) -> tuple[np.ndarray, int]:
    """Integer costs and limit: exact where the costs have a common unit, else rounded down (or up)."""
    largest = float(np.abs(cost).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(cost), dtype=np.int64), 0 if limit >= 0 else -1
    unit = common_unit(cost)
    if unit is not None:
        slack = 0.0 if round_up else num_groups * 1e-10 * largest
        most = float(np.abs(np.round(cost / unit)).sum())  # more never binds, and might not fit into 64 bits
        return np.round(cost / unit).astype(np.int64), int(np.floor(min((limit + slack) / unit + 1e-9, most)))
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
