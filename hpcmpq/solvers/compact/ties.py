"""A `Problem` as a `Compact` one: one group per set of tied groups, options that can never be chosen left out.

Axis letters: P options, G groups, S groups after merging, H as many and one more, C budgets, J positions in a group, W
classes of ties.
"""

import math

import numpy as np
import scipy

from hpcmpq.cross_terms import CrossTerms, is_sparse, tidy
from hpcmpq.problem import Problem, search_limit
from hpcmpq.solvers.compact.compact import Compact, JointCost


def merge_ties(problem: Problem) -> Compact | str:
    """One group per set of tied groups, forbidden options and infinite single costs removed.

    A merged group has the options of its first member, in that order, whose class every member has and may choose.
    """
    roots, super_G = np.unique(_tie_roots(problem), return_inverse=True)
    allowed_P = (
        np.ones(len(problem.group_P), bool) if problem.allowed_P is None else problem.allowed_P.astype(bool)
    )
    budgets = [b for b in problem.budgets if b.limit != math.inf]
    for budget in budgets:
        allowed_P = allowed_P & np.isfinite(budget.cost.linear_P)
    option_GJ = _tied_options(problem, roots[super_G], allowed_P)
    count_SJ = np.zeros((len(roots), option_GJ.shape[1]), dtype=np.int64)
    np.add.at(count_SJ, super_G, option_GJ >= 0)
    allowed_SJ = count_SJ == np.bincount(super_G)[:, None]
    if not allowed_SJ.any(axis=1).all():
        return _nothing_left(problem, np.flatnonzero(super_G == int(np.argmin(allowed_SJ.any(axis=1)))))
    new_SJ = np.cumsum(allowed_SJ.ravel()).reshape(allowed_SJ.shape) - 1
    group_M, position_M = np.nonzero(allowed_SJ[super_G])
    order, new_of_order = option_GJ[group_M, position_M], new_SJ[super_G[group_M], position_M]
    perm = np.argsort(new_of_order, kind="stable")
    order = order[perm]
    starts = np.flatnonzero(np.append(True, np.diff(new_of_order[perm]) > 0))
    count_S = allowed_SJ.sum(axis=1)
    offset_H = np.append(0, np.cumsum(count_S)).astype(np.int64)
    linear_P, quad_PP = _merged_objective(problem, order, starts, offset_H)
    cost_CP = np.array([np.add.reduceat(b.cost.linear_P[order], starts) for b in budgets]).reshape(
        len(budgets), len(starts)
    )
    limit_C = np.array([search_limit(b) - b.cost.constant for b in budgets])
    origin_GJ = np.full_like(option_GJ, -1)
    origin_GJ[group_M, new_SJ[super_G[group_M], position_M] - offset_H[super_G[group_M]]] = option_GJ[
        group_M, position_M
    ]
    place_GJ = origin_GJ - problem.offset_G[:, None]
    tables = tuple(
        _merged_table(
            k, term.groups, term.table, super_G, [place_GJ[g, : count_S[super_G[g]]] for g in term.groups]
        )
        for k, b in enumerate(budgets)
        for term in b.cost.terms
    )
    return Compact(
        linear_P, quad_PP, offset_H, cost_CP, limit_C, tables, problem.constant, 1.0, origin_GJ, super_G
    )


def _tied_options(problem: Problem, root_G: np.ndarray, allowed_P: np.ndarray) -> np.ndarray:
    """Every group's allowed option of the class of each option of its root, int64 [G, J]; −1 where there is none."""
    offset_G, size_G = problem.offset_G, np.bincount(problem.group_P)
    position_P = np.arange(len(problem.group_P)) - offset_G[problem.group_P]
    if problem.tie_class_P is None:
        class_P = position_P
    else:
        class_P = np.unique(problem.tie_class_P, return_inverse=True)[1]
    option_GW = np.full((problem.num_groups, int(class_P.max()) + 1), -1, dtype=np.int64)
    option_GW[problem.group_P[allowed_P], class_P[allowed_P]] = np.flatnonzero(allowed_P)
    class_GJ = np.full((problem.num_groups, int(size_G.max())), -1, dtype=np.int64)
    class_GJ[problem.group_P, position_P] = class_P
    wanted_GJ = class_GJ[root_G]
    found_GJ: np.ndarray = np.take_along_axis(option_GW, np.maximum(wanted_GJ, 0), axis=1)
    return np.where(wanted_GJ >= 0, found_GJ, -1)


def _nothing_left(problem: Problem, members: np.ndarray) -> str:
    """The sentence about tied groups, or one group, without an option."""
    names = ", ".join(problem.group_names[g] if problem.group_names else str(g) for g in members.tolist())
    if len(members) == 1:
        return f"no option is allowed for group {names}; all are forbidden or cost inf"
    return f"no option is allowed for group {names} (tied); what they share is forbidden, costs inf, or is nothing"


def _tie_roots(problem: Problem) -> np.ndarray:
    root_G = np.arange(problem.num_groups)
    for tie in problem.ties:
        merged = np.isin(root_G, root_G[list(tie)])
        if merged.any():
            root_G[merged] = root_G[merged].min()
    return root_G


def _merged_objective(
    problem: Problem, order: np.ndarray, starts: np.ndarray, offset_H: np.ndarray
) -> tuple[np.ndarray, CrossTerms]:
    """c and H of the merged options: EᵀHE with the terms inside a merged option moved into c."""
    quad_PP, linear_P = problem.quad_PP, np.asarray(problem.linear_P, dtype=np.float64)
    if is_sparse(quad_PP):
        return _merged_sparse(linear_P, quad_PP, order, starts, offset_H)
    if quad_PP.strides == (0, 0) and quad_PP[0, 0] == 0.0:  # a view of one zero, which stays one
        return np.add.reduceat(linear_P[order], starts), np.broadcast_to(0.0, (len(starts), len(starts)))
    if len(order) != len(linear_P) or (order != np.arange(len(order))).any():
        quad_PP, linear_P = quad_PP[np.ix_(order, order)], linear_P[order]
    if len(starts) != len(order):
        quad_PP = np.add.reduceat(np.add.reduceat(quad_PP, starts, axis=0), starts, axis=1)
        linear_P = np.add.reduceat(linear_P, starts)
    linear_P = linear_P + 0.5 * np.diagonal(quad_PP)
    if quad_PP.dtype != np.float64 or not _clean(quad_PP, offset_H):
        quad_PP = 0.5 * (quad_PP + quad_PP.T)
        for start, stop in zip(offset_H[:-1], offset_H[1:], strict=True):
            quad_PP[start:stop, start:stop] = 0.0
    return linear_P, quad_PP


def _merged_sparse(
    linear_P: np.ndarray, quad_PP: CrossTerms, order: np.ndarray, starts: np.ndarray, offset_H: np.ndarray
) -> tuple[np.ndarray, CrossTerms]:
    """c and H of the merged options where H is sparse."""
    merged_M = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    shape = len(linear_P), len(starts)
    pick_PS = scipy.sparse.csr_array((np.ones(len(order)), (order, merged_M)), shape=shape)
    whole_SS = pick_PS.T @ scipy.sparse.csr_array(quad_PP) @ pick_PS
    linear_S = pick_PS.T @ linear_P + 0.5 * whole_SS.diagonal()
    group_S = np.repeat(np.arange(len(offset_H) - 1), np.diff(offset_H))
    return linear_S, tidy(whole_SS, group_S)


def _clean(quad_PP: np.ndarray, offset_H: np.ndarray) -> bool:
    """Whether H is exactly symmetric and zero inside groups, checked in blocks to save memory."""
    if any(quad_PP[a:b, a:b].any() for a, b in zip(offset_H[:-1], offset_H[1:], strict=True)):
        return False
    blocks = range(0, len(quad_PP), 1024)
    return all(
        np.array_equal(quad_PP[i : i + 1024, j : j + 1024], quad_PP[j : j + 1024, i : i + 1024].T)
        for i in blocks
        for j in blocks
        if j >= i
    )


def _merged_table(
    budget: int, groups: tuple[int, ...], table: np.ndarray, super_G: np.ndarray, places: list[np.ndarray]
) -> JointCost:
    """A joint table over merged groups: tied axes become one diagonal axis.

    Args:
        budget: The table's.
        groups: Of its axes.
        table: Before merging.
        super_G: Merged group of every group.
        places: For every axis the place in the table of each option of its merged group.
    """
    supers = super_G[list(groups)].tolist()
    unique = list(dict.fromkeys(supers))
    grids = np.meshgrid(*[np.arange(len(places[supers.index(s)])) for s in unique], indexing="ij")
    index = tuple(place[grids[unique.index(s)]] for s, place in zip(supers, places, strict=True))
    return JointCost(budget, tuple(unique), table[index])
