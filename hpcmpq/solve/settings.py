"""Budgets and solver settings as they are typed."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from hpcmpq.errors import UserError
from hpcmpq.plan import Plan
from hpcmpq.settings import SolverConfig
from hpcmpq.tables import table_name


def parse_budget(text: str) -> tuple[str, float]:
    """('weight_bits', 3.0) of ``weight_bits=3.0``.

    Raises:
        UserError: If the text is not NAME=VALUE.
    """
    name, equals, value = text.partition("=")
    try:
        if equals:
            return table_name(name.strip()), float(value)
    except ValueError:
        pass
    raise UserError(f"--budget takes NAME=VALUE such as weight_bits=3.0, got {text!r}")


def parse_budgets(texts: Iterable[str]) -> dict[str, float]:
    """{cost name: limit} of all that `--budget` was given; of two limits on one cost the smaller.

    Raises:
        UserError: If a text is not NAME=VALUE.
    """
    return all_limits(map(parse_budget, texts))


def settings_of(plan: Plan, **changes: Any) -> SolverConfig:
    """The plan's solver settings with the changes that are not None.

    Raises:
        UserError: If the time limit is not above 0, or endless.
    """
    settings = replace(plan.config.solver, **{k: v for k, v in changes.items() if v is not None})
    if not 0 < settings.time_limit_s < np.inf:
        raise UserError(f"--time-limit must be a number of seconds above 0, got {settings.time_limit_s:g}")
    return settings


def all_limits(given: Iterable[tuple[str, float]]) -> dict[str, float]:
    """{cost name: limit} of budgets that all hold: of two limits on one cost the smaller.

    Example:
        >>> all_limits([("weight_bits", 2.5), ("bops", 6e9), ("weight_bits", 3.0)])
        {'weight_bits': 2.5, 'bops': 6000000000.0}
    """
    limits: dict[str, float] = {}
    for name, limit in given:
        limits[name] = float(np.minimum(limit, limits.get(name, limit)))  # NaN stays to be refused
    return limits
