"""From a `Problem` to its `Compact` form: check, merge ties, drop what cannot be chosen, normalise.

Axis letters: P options, G groups, C budgets.
"""

import math
from dataclasses import replace

import numpy as np

from hpcmpq.cross_terms import is_sparse
from hpcmpq.problem import Problem
from hpcmpq.solvers.compact.compact import Compact, restrict
from hpcmpq.solvers.compact.ties import merge_ties


def presolve(problem: Problem) -> Compact | str:
    """The compact form, or one sentence that says why no assignment exists (empty: not known which budget).

    Ties become one group whose inner cross terms are linear; options that are forbidden, infinitely
    expensive or too expensive beside everybody else's cheapest are removed; groups with one option left
    are fixed; joint tables of one group become linear; budgets that always hold are dropped.

    Raises:
        ValueError: If an array has the wrong shape, is NaN, or is infinite where that has no meaning.
    """
    validate(problem)
    compact = merge_ties(problem)
    if isinstance(compact, str):
        return compact
    names = [b.cost.name for b in problem.budgets if b.limit != math.inf]
    return _shrink(compact, names)


def validate(problem: Problem) -> None:
    """Check shapes and values.

    Raises:
        ValueError: If an array has the wrong shape, is NaN, or is infinite where that has no meaning.
    """
    num_options = len(problem.linear_P)
    if num_options == 0 or problem.group_P.shape != (num_options,):
        raise ValueError(
            f"group_P has shape {problem.group_P.shape}, linear_P {num_options} options; need as many"
        )
    steps = np.diff(problem.group_P)
    if problem.group_P[0] != 0 or ((steps != 0) & (steps != 1)).any():
        raise ValueError("group_P must be sorted and name every group 0..G-1")
    if problem.quad_PP.shape != (num_options, num_options):
        raise ValueError(f"quad_PP has shape {problem.quad_PP.shape}, must be {(num_options, num_options)}")
    # A sum is finite exactly when all its terms are (up to overflow), and needs no temporary of P² entries.
    stored = problem.quad_PP.tocsr().data if is_sparse(problem.quad_PP) else problem.quad_PP.sum(axis=1)
    if not np.isfinite(problem.linear_P).all() or not np.isfinite(stored).all():
        raise ValueError("the objective has NaN or infinite entries; forbid options with allowed_P instead")
    if not math.isfinite(problem.constant):
        raise ValueError(f"constant is {problem.constant}; must be finite")
    if problem.allowed_P is not None and problem.allowed_P.shape != (num_options,):
        raise ValueError(f"allowed_P has shape {problem.allowed_P.shape}, must be {(num_options,)}")
    size_G = np.bincount(problem.group_P)
    if problem.tie_class_P is not None:
        if problem.tie_class_P.shape != (num_options,):
            raise ValueError(f"tie_class_P has shape {problem.tie_class_P.shape}, must be {(num_options,)}")
        if len(np.unique(np.stack([problem.group_P, problem.tie_class_P]), axis=1).T) != num_options:
            raise ValueError("tie_class_P has two options of one class in a group; a tie needs one at most")
    for tie in problem.ties:
        if any(not 0 <= g < problem.num_groups for g in tie):
            raise ValueError(f"tie {tie} names a group outside 0..{problem.num_groups - 1}")
    for budget in problem.budgets:
        name, cost = budget.cost.name, budget.cost
        if cost.linear_P.shape != (num_options,):
            raise ValueError(f"cost {name} has shape {cost.linear_P.shape}, must be {(num_options,)}")
        arrays = [cost.linear_P, *(term.table for term in cost.terms)]
        if any(np.isnan(a).any() or (a == -math.inf).any() for a in arrays) or not math.isfinite(
            cost.constant
        ):
            raise ValueError(f"cost {name} has NaN or minus infinity")
        if math.isnan(budget.limit) or budget.limit == -math.inf:
            raise ValueError(f"the limit of {name} is {budget.limit}; must be a number")
        for term in cost.terms:
            shape = tuple(int(size_G[g]) for g in term.groups)
            if len(set(term.groups)) != len(term.groups) or term.table.shape != shape:
                raise ValueError(
                    f"a table of {name} over groups {term.groups} has shape {term.table.shape}, not {shape}"
                )


def _shrink(compact: Compact, names: list[str]) -> Compact | str:
    keep_P = np.ones(compact.num_options, bool)
    while True:
        smaller = restrict(compact, keep_P)
        if smaller is None:
            return ""  # budgets or infinite joint costs exclude one another; `answer.explain` finds which
        compact = smaller
        least_CP, least_C = cheapest_completion(compact)
        over_C = least_C - compact.limit_C
        if (over_C > 0).any():
            k = int(np.argmax(over_C > 0))
            if least_C[k] == math.inf:
                return f"every assignment has an infinite {names[k]}"
            return ""  # alone, or because of what the others leave
        keep_P = np.asarray((least_CP <= compact.limit_C[:, None]).all(axis=0))
        if keep_P.all() and not (np.diff(compact.offset_H) == 1).any():
            break
    return _normalise(_drop_slack_budgets(compact))


def cheapest_completion(compact: Compact) -> tuple[np.ndarray, np.ndarray]:
    """A lower bound on each budget's cost given an option, float64 [C, P], and over all, float64 [C].

    Exact without joint tables; a table counts with the least entry of the option's slice, and only once.
    """
    starts = compact.offset_H[:-1]
    if compact.num_groups == 0:
        return compact.cost_CP, np.zeros(len(compact.limit_C))
    own_CP = compact.cost_CP.copy()
    floor_C = np.zeros(len(compact.limit_C))
    floors = []
    for table in compact.tables:
        floor = float(table.table.min())
        floors.append(floor)
        floor_C[table.budget] += floor
    least_CG = np.minimum.reduceat(own_CP, starts, axis=1)
    least_C = least_CG.sum(axis=1) + floor_C
    with np.errstate(invalid="ignore"):  # where a group has infinite costs alone, so has every assignment
        least_CP = least_C[:, None] + own_CP - least_CG[:, compact.group_P]
    for table, floor in zip(compact.tables, floors, strict=True):
        if floor == math.inf:
            continue
        for axis, group in enumerate(table.groups):
            others = tuple(a for a in range(table.table.ndim) if a != axis)
            slice_ = table.table.min(axis=others) - floor
            start = compact.offset_H[group]
            least_CP[table.budget, start : start + len(slice_)] += slice_
    return least_CP, least_C


def _drop_slack_budgets(compact: Compact) -> Compact:
    """Without the budgets that every assignment keeps."""
    most_C = (
        np.maximum.reduceat(compact.cost_CP, compact.offset_H[:-1], axis=1).sum(axis=1)
        if compact.num_groups
        else np.zeros(len(compact.limit_C))
    )
    for table in compact.tables:
        most_C[table.budget] += table.table.max()
    used_C = most_C > compact.limit_C
    index_C = np.cumsum(used_C) - 1
    tables = tuple(replace(t, budget=int(index_C[t.budget])) for t in compact.tables if used_C[t.budget])
    return replace(compact, cost_CP=compact.cost_CP[used_C], limit_C=compact.limit_C[used_C], tables=tables)


def _normalise(compact: Compact) -> Compact:
    """Objective divided by its size; budgets shifted to least cost 0 per group, divided by their range."""
    if compact.num_groups == 0:
        return compact
    starts = compact.offset_H[:-1]
    shift_CG = np.minimum.reduceat(compact.cost_CP, starts, axis=1)
    cost_CP = compact.cost_CP - shift_CG[:, compact.group_P]
    limit_C = compact.limit_C - shift_CG.sum(axis=1)
    tables = list(compact.tables)
    for i, table in enumerate(tables):
        floor = table.table.min()
        tables[i] = replace(table, table=table.table - floor)
        limit_C[table.budget] -= floor
    range_C = np.maximum(np.maximum.reduceat(cost_CP, starts, axis=1).sum(axis=1), 1e-300)
    for table in tables:
        finite = table.table[np.isfinite(table.table)]
        range_C[table.budget] = max(range_C[table.budget], float(finite.max()))
    tables = [replace(t, table=t.table / range_C[t.budget]) for t in tables]
    spread = float(
        (np.maximum.reduceat(compact.linear_P, starts) - np.minimum.reduceat(compact.linear_P, starts)).max()
    )
    largest = max(spread, float(compact.quad_PP.max()), -float(compact.quad_PP.min()))
    if largest > 0 and not 1e-3 <= largest <= 1e3:
        scale = 2.0 ** round(math.log2(largest))  # a power of two divides without rounding
        compact = replace(
            compact,
            linear_P=compact.linear_P / scale,
            quad_PP=compact.quad_PP / scale,
            scale=compact.scale * scale,
        )
    return replace(
        compact, cost_CP=cost_CP / range_C[:, None], limit_C=limit_C / range_C, tables=tuple(tables)
    )
