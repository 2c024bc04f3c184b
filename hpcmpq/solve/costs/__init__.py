"""Costs of an assignment that a budget can name, computed from the search space alone (no torch)."""

from hpcmpq.solve.costs.compute import active_macs_cost, bops_cost, macs_cost
from hpcmpq.solve.costs.memory import (
    active_bytes_cost,
    average_bits_cost,
    kv_bytes_cost,
    size_bytes_cost,
    weight_bits_cost,
)

__all__ = [
    "active_bytes_cost",
    "active_macs_cost",
    "average_bits_cost",
    "bops_cost",
    "kv_bytes_cost",
    "macs_cost",
    "size_bytes_cost",
    "weight_bits_cost",
]
