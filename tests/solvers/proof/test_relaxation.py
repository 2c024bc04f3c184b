"""The parts of the proof, each against its definition on small random problems."""

import itertools
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from bench.instances import Shape, make_instance
from hpcmpq.problem import Budget, Cost, CostTerm, Problem, ProofLine
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.cp_sat.integer_costs import common_unit
from hpcmpq.solvers.greedy import efficiency_frontier
from hpcmpq.solvers.proof.admm import certified, iterate, start
from hpcmpq.solvers.proof.enumerate import exhaust
from hpcmpq.solvers.proof.exclusion import exclude
from hpcmpq.solvers.proof.gilmore_lawler import full_bound
from hpcmpq.solvers.proof.lift import make_lift
from hpcmpq.solvers.proof.node import advance, all_pairs, make_node, padded_pairs, preconditioner
from hpcmpq.solvers.proof.projection import Projector, simplex
from hpcmpq.solvers.proof.record import ProofRecord, limited_by
from hpcmpq.solvers.proof.relaxation import additive_floor, make_relaxation, minimise, separable_budgets
from hpcmpq.solvers.proof.spectral import spectral_bound
from hpcmpq.solvers.search.state import SearchState
from hpcmpq.solvers.search.tabu import search


def small(seed: int = 0, indefinite: bool = True) -> Compact:
    compact = presolve(make_instance(Shape(4, 4, 0.3, indefinite, 3.0, seed)))
    assert isinstance(compact, Compact)
    return compact


def feasible_choices(compact: Compact) -> list[np.ndarray]:
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    choices = [np.array(choice) for choice in itertools.product(*ranges)]
    return [choice for choice in choices if compact.feasible(choice)]


def lifted(compact: Compact, choice_G: np.ndarray, scale_P: np.ndarray) -> np.ndarray:
    """The vector v = (1, d∘x, s) of a choice in the relaxation's layout."""
    lift = make_relaxation(compact, scale_P).lift
    cost_CP, limit_C = separable_budgets(compact)
    x_X = np.zeros(lift.padded)
    x_X[lift.column_P[choice_G]] = scale_P[choice_G]
    slack_C = 1.0 - cost_CP[:, choice_G].sum(axis=1) / limit_C
    return np.concatenate([[1.0], x_X, slack_C])


def test_lift_is_orthonormal_and_spans_every_choice() -> None:
    compact = small()
    scale_P = np.random.default_rng(0).uniform(0.5, 3.0, compact.num_options)
    lift = make_relaxation(compact, scale_P).lift
    basis = lift.up(np.eye(lift.dimension))
    np.testing.assert_allclose(basis.T @ basis, np.eye(lift.dimension), atol=1e-12)
    for choice_G in feasible_choices(compact)[:20]:
        v = lifted(compact, choice_G, scale_P)
        np.testing.assert_allclose(basis @ (basis.T @ v), v, atol=1e-10)
        assert v @ v <= lift.trace + 1e-9
    a = np.random.default_rng(1).standard_normal((lift.size, lift.size))
    np.testing.assert_allclose(lift.down(a + a.T), basis.T @ (a + a.T) @ basis, atol=1e-10)


@pytest.mark.parametrize("near", [None, -np.inf, -1.0, 0.3, 1e6])
def test_simplex_projection_meets_its_optimality_conditions(near: float | None) -> None:
    rng = np.random.default_rng(0)
    linear, weight = rng.standard_normal((7, 50)), rng.uniform(0.1, 5.0, (7, 50))
    linear[0] = -np.inf
    v, threshold = simplex(linear, weight, None if near is None else np.full(50, near))
    np.testing.assert_allclose(v, np.maximum(linear - threshold, 0.0) / weight)
    np.testing.assert_allclose(v.sum(axis=0), 1.0, atol=1e-5)
    assert (v >= 0).all() and (v[0] == 0).all()
    # Where v > 0 the gradient weight·v − linear is one constant per column, elsewhere at least that.
    gradient = weight[1:] * v[1:] - linear[1:]
    threshold = np.where(v[1:] > 0, gradient, -np.inf).max(axis=0)
    np.testing.assert_allclose(
        np.where(v[1:] > 0, gradient, threshold), np.tile(threshold, (6, 1)), atol=1e-6
    )
    assert (gradient >= threshold - 1e-6).all()


def test_a_column_of_a_simplex_with_nothing_allowed_is_zero() -> None:
    v, _ = simplex(np.full((3, 2), -np.inf, np.float32), np.ones((3, 2), np.float32))
    assert (v == 0.0).all()


def test_minimum_over_the_polyhedral_set_is_below_every_choice_and_rises_are_valid() -> None:
    compact = small(1)
    relaxation = make_relaxation(compact)
    size = relaxation.lift.size
    m = np.random.default_rng(2).standard_normal((size, size))
    m = m + m.T
    minimum = minimise(relaxation, m, relaxation.allowed_XX)
    ones = np.ones(compact.num_options)
    for choice_G in feasible_choices(compact):
        v = lifted(compact, choice_G, ones)
        value = v @ m @ v
        columns = relaxation.lift.column_P[choice_G]
        assert minimum.value <= value + 1e-9
        assert (minimum.value + minimum.rise_X[columns] <= value + 1e-9).all()
        pairs = 0.5 * minimum.pair_XX[np.ix_(columns, columns)].sum()
        assert minimum.value + minimum.own_X[columns].sum() + pairs <= value + 1e-9


def test_an_excluded_option_proves_what_the_minimum_without_its_rivals_does() -> None:
    """Pairs that are excluded rule out the options that need them, and rises say so."""
    relaxation = make_relaxation(small(1))
    lift = relaxation.lift
    allowed_XX = relaxation.allowed_XX.copy()
    row, group = lift.column_P[1], slice(lift.width, 2 * lift.width)
    allowed_XX[row, group] = allowed_XX[group, row] = False
    minimum = minimise(relaxation, np.zeros((lift.size, lift.size)), allowed_XX)
    assert np.isinf(minimum.rise_X[row])
    assert (minimum.rise_X[np.delete(lift.column_P, 1)] == 0.0).all()


def noisy(groups: int) -> Compact:
    """Like measured on few samples: cross terms of both signs about as large as what the options do alone."""
    rng = np.random.default_rng(0)
    group_P = np.repeat(np.arange(groups), 4)
    root_P = (rng.lognormal(0.0, 0.5, groups)[:, None] * 2.0 ** -np.arange(4)).ravel()
    noise_PP = 0.3 + 0.5 * rng.standard_normal((4 * groups, 4 * groups))
    quad_PP = np.outer(root_P, root_P) * (noise_PP + noise_PP.T)
    quad_PP[group_P[:, None] == group_P] = 0.0
    cost = Cost("bits", "bits", np.tile(np.arange(2.0, 6.0), groups) / groups)
    compact = presolve(Problem(root_P**2, quad_PP, group_P, (Budget(cost, 3.5),)))
    assert isinstance(compact, Compact)
    return compact


def test_the_mean_of_two_multipliers_proves_more_than_the_last() -> None:
    compact = noisy(16)
    best = search(compact, deadline=np.inf, seed=0)
    assert best is not None
    mean, last = (make_node(compact, all_pairs(compact), preconditioner(compact, best[0])) for _ in range(2))
    advance(mean, 60, np.inf)
    for _ in range(60):
        half_NN = iterate(last.relaxation, last.projector, last.state, last.objective_NN)
    of_last = certified(last.relaxation, half_NN, padded_pairs(last)).value
    assert best[1] - mean.bound < 0.8 * (best[1] - of_last)


@pytest.mark.parametrize(
    ("node", "steps", "step_s", "closed", "expected"),
    [
        (
            1,
            40,
            2.0,
            0.5,
            "the time of a step limits the proof: 40 steps of 2 s, 75 % of all for the projection",
        ),
        (1, 40, 0.1, 0.5, "the number of steps limits"),
        (1, 40, 0.1, 0.01, "the relaxation limits"),
        (1, 900, 2.0, 0.01, "the relaxation limits"),
        (3, 40, 2.0, 0.5, "branching limits the proof: 3 nodes were bounded and 2 are open"),
    ],
)
def test_what_limits_a_proof_is_said(
    node: int, steps: int, step_s: float, closed: float, expected: str
) -> None:
    record = ProofRecord(0.0, part_s=defaultdict(float, search=1.0, projection=3.0), open_nodes=2)
    for at_node, at_steps, bound in ((1, steps - 10, 0.0), (node, steps, closed)):
        record.lines.append(ProofLine(1.0, at_node, at_steps, step_s, 99, 9, 99, bound, 1.0, bound))
    assert limited_by(record).startswith(expected)
    if node > 1:  # of nodes side by side the first may end last
        record.lines.append(record.lines.pop(0))
        assert limited_by(record).startswith(expected)


@pytest.mark.parametrize("steps", [1, 5, 60])
def test_certificate_holds_at_any_iterate(steps: int) -> None:
    compact = small(2)
    best = min(compact.objective(choice_G) for choice_G in feasible_choices(compact))
    node = make_node(compact, all_pairs(compact), preconditioner(compact, feasible_choices(compact)[0]))
    state, objective_NN = start(node.relaxation, node.projector)
    for _ in range(steps):
        half_NN = iterate(node.relaxation, node.projector, state, objective_NN)
    bound = certified(node.relaxation, half_NN, node.relaxation.allowed_XX)
    assert bound.value <= best + 1e-12
    random_NN = np.random.default_rng(0).standard_normal(half_NN.shape)
    wild = certified(node.relaxation, random_NN + random_NN.T, node.relaxation.allowed_XX)
    assert wild.value <= best
    # A multiple of the identity lifts the polyhedral minimum above every objective; its eigenvalue takes that back.
    raised = certified(node.relaxation, 10 * abs(best) * np.eye(len(half_NN)), node.relaxation.allowed_XX)
    assert raised.minimum.value > best
    assert raised.value <= best
    # Only the symmetric part of a multiplier acts: what the first row has more than the first column does not.
    skew_NN = np.zeros(half_NN.shape)
    skew_NN[0, 1 : 1 + node.relaxation.lift.padded] = 10 * abs(best)
    for lopsided_NN in (half_NN + skew_NN - skew_NN.T, half_NN - skew_NN + skew_NN.T):
        assert certified(node.relaxation, lopsided_NN, node.relaxation.allowed_XX).value <= best
    if steps == 60:
        assert bound.value > best - 0.1 * abs(best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("place", [0, 3, 30])
def test_exclusion_spares_every_choice_below_the_cutoff(seed: int, place: int) -> None:
    compact = small(seed, indefinite=bool(seed % 2))
    choices = sorted(feasible_choices(compact), key=compact.objective)
    cutoff = compact.objective(choices[place])
    node = make_node(compact, all_pairs(compact), preconditioner(compact, choices[0]))
    advance(node, 150, np.inf)
    num_left = exclude(node, cutoff + 1e-12)
    assert num_left == np.diagonal(node.allowed_PP).sum()
    for choice_G in choices[: place + 1]:
        assert node.allowed_PP[np.ix_(choice_G, choice_G)].all()
    assert node.allowed_PP.sum() < all_pairs(compact).sum()


def test_exactly_the_pairs_whose_excesses_pass_the_cutoff_are_excluded() -> None:
    """Summed one by one: own and pair excess, and with every other group the least that both have, its own halved."""
    compact = small(0)
    choices = sorted(feasible_choices(compact), key=compact.objective)
    cutoff = compact.objective(choices[30])
    node = make_node(compact, all_pairs(compact), preconditioner(compact, choices[0]))
    advance(node, 150, np.inf)
    assert node.last is not None
    minimum, columns = node.last.minimum, node.relaxation.lift.column_P
    own_P, pair_PP = minimum.own_X[columns], minimum.pair_XX[np.ix_(columns, columns)]
    exclude(node, cutoff)
    decisions = []
    for p, q in itertools.combinations(np.flatnonzero(np.diagonal(node.allowed_PP)).tolist(), 2):
        if compact.group_P[p] != compact.group_P[q]:
            total = node.last.value + own_P[p] + own_P[q] + pair_PP[p, q]
            for group in set(compact.group_P.tolist()) - {compact.group_P[p], compact.group_P[q]}:
                others = np.flatnonzero(compact.group_P == group)
                total += sum(min(pair_PP[r, b] + 0.5 * own_P[b] for b in others) for r in (p, q))
            assert node.allowed_PP[p, q] == (total <= cutoff)
            decisions.append(bool(node.allowed_PP[p, q]))
    assert set(decisions) == {True, False}


def test_projection_is_idempotent() -> None:
    compact = small(3)
    projector = Projector(make_relaxation(compact), np.float64)
    w = np.random.default_rng(0).standard_normal((projector.lift.size,) * 2)
    once = projector.project(w + w.T)
    np.testing.assert_allclose(projector.project(once), once, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_exhaustion_finds_the_optimum_without_a_certificate(seed: int) -> None:
    compact = small(seed)
    best = min(compact.objective(choice_G) for choice_G in feasible_choices(compact))
    zero_PP = np.zeros((compact.num_options,) * 2)
    arguments = {"max_nodes": 10**6, "deadline": np.inf}
    done, choice_G, value = exhaust(
        compact, -1e30, np.zeros(compact.num_options), zero_PP, np.inf, **arguments
    )
    assert done and choice_G is not None
    assert value == pytest.approx(best)
    done, choice_G, _ = exhaust(compact, -1e30, np.zeros(compact.num_options), zero_PP, best, **arguments)
    assert done and choice_G is None  # nothing lies strictly below the optimum


@pytest.mark.parametrize("seed", range(6))
def test_exhaustion_of_a_certificate_finds_the_best_of_what_is_left(seed: int) -> None:
    compact = small(seed)
    starts, group_P = compact.offset_H[:-1], compact.group_P
    # The objective itself as a certificate: every entry's excess over the least of its group or pair of groups.
    own_P = compact.linear_P - np.minimum.reduceat(compact.linear_P, starts)[group_P]
    least_GG = np.minimum.reduceat(np.minimum.reduceat(compact.quad_PP, starts, axis=0), starts, axis=1)
    pair_PP = compact.quad_PP - least_GG[np.ix_(group_P, group_P)]
    pair_PP[group_P[:, None] == group_P] = 0.0
    value = np.minimum.reduceat(compact.linear_P, starts).sum() + np.triu(least_GG, 1).sum()
    choices = feasible_choices(compact)
    gone_P = np.random.default_rng(seed).random(compact.num_options) < 0.3
    gone_P[choices[0]] = True  # the cheapest options of all groups
    gone_P[choices[len(choices) // 2]] = False
    own_P[gone_P] = np.inf
    left = [choice_G for choice_G in choices if not gone_P[choice_G].any()]
    best = min(compact.objective(choice_G) for choice_G in left)
    done, choice_G, found = exhaust(
        compact, value, own_P, pair_PP, best + 1e-3 * abs(best), max_nodes=10**6, deadline=np.inf
    )
    assert done and choice_G is not None and not gone_P[choice_G].any()
    assert found == pytest.approx(best)


@pytest.mark.parametrize("indefinite", [False, True])
def test_bounds_of_large_problems_hold_on_small_ones(indefinite: bool) -> None:
    compact = small(4, indefinite)
    choices = feasible_choices(compact)
    best = min(choices, key=compact.objective)
    assert full_bound(compact) <= compact.objective(best)
    assert spectral_bound(compact, best, np.inf, 0) <= compact.objective(best)


@pytest.mark.slow
@pytest.mark.parametrize("power", [3, 5, 6, 7, 8, 9, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_nearly_separable_problems_have_a_spectral_bound(seed: int, power: int) -> None:
    problem = make_instance(Shape(8, 4, 0.3, bool(seed), 3.0, seed))
    for share in (1.0, 0.05):
        pairs_PP = np.triu(np.random.default_rng(seed).random(problem.quad_PP.shape) < share)
        quad_PP = problem.quad_PP * 10.0**-power * (pairs_PP | pairs_PP.T)
        compact = presolve(replace(problem, quad_PP=quad_PP))
        assert isinstance(compact, Compact)
        found = search(compact, deadline=np.inf, seed=0, rounds=1)
        assert found is not None
        separable = full_bound(replace(compact, quad_PP=np.zeros_like(compact.quad_PP)))
        bound = spectral_bound(compact, found[0], np.inf, 0)
        assert separable - 40 * np.abs(compact.quad_PP).max() - 1e-8 <= bound <= found[1]


def test_no_cross_terms_and_no_time_leave_a_spectral_bound() -> None:
    compact = small(4)
    best = min(feasible_choices(compact), key=compact.objective)
    flat = replace(compact, quad_PP=np.zeros_like(compact.quad_PP))
    with np.errstate(all="raise"):
        assert np.isfinite(spectral_bound(flat, best, np.inf, 0))
    late = spectral_bound(compact, best, time.perf_counter() + 1e-4, 0)
    assert np.isfinite(late) and late <= compact.objective(best)


def test_state_stays_exact_over_many_flips() -> None:
    compact = small(5)
    rng = np.random.default_rng(0)
    state = SearchState(compact, compact.offset_H[:-1].copy())
    for _ in range(300):
        state.flip(int(rng.integers(compact.num_options)))
    assert state.objective == pytest.approx(compact.objective(state.choice_G))
    fresh = SearchState(compact, state.choice_G)
    np.testing.assert_allclose(state.marginal_P, fresh.marginal_P, atol=1e-10)
    np.testing.assert_allclose(state.slack_C, fresh.slack_C, atol=1e-12)


def test_search_depends_on_the_seed_alone() -> None:
    compact = small(6)
    first = search(compact, deadline=np.inf, seed=7, rounds=3)
    second = search(compact, deadline=np.inf, seed=7, rounds=3)
    assert first is not None and second is not None
    assert first[1] == second[1] and (first[0] == second[0]).all()


def test_additive_floor_is_below_the_table() -> None:
    table = np.random.default_rng(0).random((3, 4, 2))
    table[1, 2, 0] = np.inf
    parts, least = additive_floor(table)
    floor = least + parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :]
    assert (floor <= table + 1e-12).all()
    assert np.isclose(floor, table).any()


def test_budgets_without_tables_are_exact_where_the_tables_are_sums() -> None:
    rng = np.random.default_rng(0)
    group_P = np.repeat(np.arange(3), 3)
    first, second = rng.random(3), rng.random(3)
    term = CostTerm((0, 2), first[:, None] + second)
    budget = Budget(Cost("time", "s", rng.random(9), (term,)), 1.9)
    compact = presolve(Problem(rng.random(9), np.zeros((9, 9)), group_P, (budget,)))
    assert isinstance(compact, Compact) and compact.tables
    cost_CP, limit_C = separable_budgets(compact)
    ranges = [range(a, b) for a, b in itertools.pairwise(compact.offset_H.tolist())]
    kept = [compact.feasible(np.array(choice)) for choice in itertools.product(*ranges)]
    assert 0 < sum(kept) < len(kept)
    for choice, fits in zip(itertools.product(*ranges), kept, strict=True):
        assert bool((cost_CP[:, list(choice)].sum(axis=1) <= limit_C).all()) == fits


def test_frontier_and_unit_examples() -> None:
    assert efficiency_frontier(np.array([1.0, 1.0, 2.0, 3.0]), np.array([5.0, 4.0, 3.5, 0.0])).tolist() == [
        1,
        3,
    ]
    assert common_unit(np.array([0.5, 0.75, 2.0])) == 0.25
    assert common_unit(np.random.default_rng(0).random(9)) is None


def test_lift_without_budgets_has_no_slack_rows() -> None:
    compact = small(7)
    lift = make_lift(compact, np.zeros((0, compact.num_options)), np.zeros(0), np.ones(compact.num_options))
    assert lift.size == 1 + lift.padded
    basis = lift.up(np.eye(lift.dimension))
    np.testing.assert_allclose(basis.T @ basis, np.eye(lift.dimension), atol=1e-12)
