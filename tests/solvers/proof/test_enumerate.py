"""Exhaustion finds the best choice below a cutoff, or proves that there is none, as trying all choices does.

Small random problems with ties, forbidden options, one to three budgets, joint costs of either sign, objectives that
are indefinite or full of equal values.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, CostTerm, Problem
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof.enumerate import exhaust
from hpcmpq.solvers.proof.exclusion import exclude
from hpcmpq.solvers.proof.node import advance, all_pairs, make_node, preconditioner

Certificate = tuple[float, np.ndarray, np.ndarray]


def random_problem(rng: np.random.Generator) -> Problem:
    size_G = np.repeat(rng.integers(2, 5, 2), 3)[: rng.integers(4, 7)]
    group_P = np.repeat(np.arange(len(size_G)), size_G)
    num_options, offset_G = len(group_P), np.append(0, np.cumsum(size_G))[:-1]
    quad_PP = rng.standard_normal((num_options, num_options))
    linear_P = 2.0 * rng.standard_normal(num_options)
    if rng.random() < 0.3:
        quad_PP, linear_P = np.round(quad_PP), np.round(linear_P)
    quad_PP = quad_PP + quad_PP.T
    quad_PP[group_P[:, None] == group_P] = 0.0
    middle_G = offset_G + size_G // 2
    budgets = []
    for k in range(rng.integers(1, 4)):
        terms = (CostTerm((0, 3), rng.standard_normal((size_G[0], size_G[3]))),) if rng.random() < 0.5 else ()
        cost = Cost(f"cost{k}", "", rng.random(num_options), terms)
        budgets.append(Budget(cost, cost.value(middle_G, offset_G) + 0.2 * rng.random()))
    allowed_P = rng.random(num_options) < 0.85
    allowed_P[middle_G] = True
    ties = ((1, 2),) if rng.random() < 0.5 else ()
    return Problem(linear_P, quad_PP, group_P, tuple(budgets), allowed_P, ties)


def feasible_choices(compact: Compact) -> list[np.ndarray]:
    """Feasible choices of the solvers' form, best first."""
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    choices = [np.array(choice, dtype=np.int64) for choice in itertools.product(*ranges)]
    return sorted((c for c in choices if compact.feasible(c)), key=compact.objective)


def objective_itself(compact: Compact) -> Certificate:
    """Every entry's excess over the least of its group or pair of groups: an equality."""
    starts, group_P = compact.offset_H[:-1], compact.group_P
    own_P = compact.linear_P - np.minimum.reduceat(compact.linear_P, starts)[group_P]
    least_GG = np.minimum.reduceat(np.minimum.reduceat(compact.quad_PP, starts, axis=0), starts, axis=1)
    pair_PP = compact.quad_PP - least_GG[np.ix_(group_P, group_P)]
    pair_PP[group_P[:, None] == group_P] = 0.0
    return np.minimum.reduceat(compact.linear_P, starts).sum() + np.triu(least_GG, 1).sum(), own_P, pair_PP


def relaxed(compact: Compact, incumbent_G: np.ndarray, cutoff: float) -> Certificate | None:
    """The certificate of the relaxation, without the pairs that it excludes."""
    node = make_node(compact, all_pairs(compact), preconditioner(compact, incumbent_G))
    advance(node, 40, np.inf)
    exclude(node, cutoff)
    if node.last is None:
        return None
    columns = node.relaxation.lift.column_P
    own_P = np.where(np.diagonal(node.allowed_PP), node.last.minimum.own_X[columns], np.inf)
    pair_PP = np.where(node.allowed_PP, node.last.minimum.pair_XX[np.ix_(columns, columns)], np.inf)
    pair_PP[compact.group_P[:, None] == compact.group_P] = 0.0
    return node.last.value, own_P, pair_PP


def cases(seed: int) -> Iterator[tuple[Compact, list[np.ndarray], float]]:
    """(problem, its feasible choices best first, a cutoff above some of them)."""
    rng = np.random.default_rng(seed)
    for _ in range(20):
        compact = presolve(random_problem(rng))
        assert isinstance(compact, Compact)
        choices = feasible_choices(compact)
        place = int(rng.integers(len(choices)))
        yield compact, choices, compact.objective(choices[place]) + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_no_bound_is_above_a_choice_that_it_is_a_bound_of(seed: int) -> None:
    num_found = 0
    for compact, choices, cutoff in cases(seed):
        if compact.num_groups < 2:
            continue
        best = compact.objective(choices[0])
        certificates = [objective_itself(compact), relaxed(compact, choices[-1], cutoff)]
        for value, own_P, pair_PP in (made for made in certificates if made is not None):
            arguments = {"max_nodes": 10**6, "deadline": np.inf}
            done, choice_G, found = exhaust(compact, value, own_P, pair_PP, cutoff, **arguments)
            assert done and choice_G is not None and compact.feasible(choice_G)
            assert found == pytest.approx(best, abs=1e-9)
            assert compact.objective(choice_G) == found
            done, choice_G, found = exhaust(compact, value, own_P, pair_PP, best - 1e-9, **arguments)
            assert done and choice_G is None and found == best - 1e-9
            num_found += 1
    assert num_found > 20


@pytest.mark.parametrize("seed", range(3))
def test_excluded_options_and_pairs_are_never_chosen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for compact, choices, _ in cases(seed):
        value, own_P, pair_PP = objective_itself(compact)
        gone_P = rng.random(compact.num_options) < 0.2
        gone_PP = np.triu(rng.random(pair_PP.shape) < 0.1, 1)
        gone_PP = (gone_PP | gone_PP.T) & (compact.group_P[:, None] != compact.group_P)
        left = [c for c in choices if not gone_P[c].any() and not gone_PP[np.ix_(c, c)].any()]
        own_P, pair_PP = np.where(gone_P, np.inf, own_P), np.where(gone_PP, np.inf, pair_PP)
        done, choice_G, found = exhaust(compact, value, own_P, pair_PP, 1e9, max_nodes=10**6, deadline=np.inf)
        assert done and (choice_G is None) == (not left)
        if choice_G is not None:
            assert tuple(choice_G) in {tuple(c) for c in left}
            assert found == pytest.approx(compact.objective(left[0]), abs=1e-9)
