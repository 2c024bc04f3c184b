"""Branch and bound with nodes side by side, against enumeration."""

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from hpcmpq.problem import Budget, Cost, Problem, Termination
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.memory import nodes_bytes
from hpcmpq.solvers.proof import bounding, branch, threads
from hpcmpq.solvers.proof.incumbent import first_incumbent
from hpcmpq.solvers.proof.node import all_pairs, make_node
from hpcmpq.solvers.proof.record import ProofRecord
from hpcmpq.solvers.quadratic import QuadraticSolver


def unstructured(groups: int, options: int, seed: int) -> Problem:
    """Random cross terms, whose relaxation is not tight, and one budget."""
    rng = np.random.default_rng(seed)
    group_P = np.repeat(np.arange(groups), options)
    half_PP = rng.standard_normal((len(group_P), len(group_P)))
    quad_PP = np.where(group_P[:, None] != group_P, half_PP + half_PP.T, 0.0)
    budget = Budget(Cost("size", "bytes", rng.uniform(1.0, 2.0, len(group_P))), 1.45 * groups)
    return Problem(rng.standard_normal(len(group_P)), quad_PP, group_P, (budget,))


def least(problem: Problem, groups: int, options: int) -> float:
    """By enumeration."""
    choices = np.array(list(itertools.product(range(options), repeat=groups))) + options * np.arange(groups)
    x = np.zeros((len(choices), groups * options))
    x[np.arange(len(choices))[:, None], choices] = 1.0
    value = x @ problem.linear_P + 0.5 * ((x @ problem.quad_PP) * x).sum(axis=1)
    (budget,) = problem.budgets
    return float(value[x @ budget.cost.linear_P <= budget.limit].min())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_nodes_side_by_side_prove_the_optimum(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "threads_of", lambda dimension: threads)
    monkeypatch.setattr(bounding.Bounding, "finish", lambda self, node: False)  # no node ends by enumeration
    monkeypatch.setattr(bounding.Bounding, "round", lambda self, node: None)
    for seed in (2, 5, 11):  # their first relaxation leaves a gap
        problem = unstructured(9, 4, seed)
        answer = QuadraticSolver().solve(problem, time_limit_s=120.0, seed=0)
        assert answer.termination is Termination.OPTIMAL
        assert answer.objective == pytest.approx(least(problem, 9, 4), rel=1e-9)
        proven = [line.proven for line in answer.proof]
        assert max(line.node for line in answer.proof) > 1
        assert proven == sorted(proven) and proven[-1] <= answer.objective + 1e-9 * abs(answer.objective)


@pytest.mark.parametrize(("steps", "branches"), [(0, True), (10**9, False)])
def test_more_groups_branch_where_time_is_left_for_it(steps: int, branches: bool, monkeypatch) -> None:
    monkeypatch.setattr(bounding, "BRANCH_GROUPS", 8)
    monkeypatch.setattr(bounding, "BRANCH_STEPS", steps)
    monkeypatch.setattr(bounding.Bounding, "finish", lambda self, node: False)
    answer = QuadraticSolver().solve(unstructured(9, 4, 5), time_limit_s=120.0 if branches else 3.0, seed=0)
    assert any(line.node > 1 for line in answer.proof) is branches
    assert answer.termination is Termination.OPTIMAL or not branches


def test_a_node_without_time_for_its_certificate_is_kept_whole() -> None:
    problem = unstructured(9, 4, 5)
    compact = presolve(problem)
    assert isinstance(compact, Compact)
    node = make_node(compact, all_pairs(compact), np.ones(compact.num_options))
    node.step_s, node.certificate_s = 1e-3, 1e3
    incumbent = first_incumbent(compact, compact.offset_H[:-1])
    deadline = time.perf_counter() + 500.0
    tree = branch._Tree(bounding.Bounding(compact, 0.0, incumbent, deadline, 0, ProofRecord()))
    assert tree.take(node, -1.0)
    assert [entry[2] for entry in tree.heap] == [node]


def check_that_it_ends(failing: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes side by side, bounded by what fails, end the solve with the failure."""
    monkeypatch.setattr(branch, "threads_of", lambda dimension: 2)
    monkeypatch.setattr(bounding.Bounding, "finish", lambda self, node: False)
    monkeypatch.setattr(bounding.Bounding, "process", failing)
    with pytest.raises(MemoryError, match="no room for a certificate"):
        QuadraticSolver().solve(unstructured(9, 4, 5), time_limit_s=120.0, seed=0)


def test_what_fails_in_a_thread_ends_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    process = bounding.Bounding.process

    def failing(self: bounding.Bounding, node: bounding.Node, place: bounding.NodePlace):
        if place.number > 1:
            raise MemoryError("no room for a certificate")
        return process(self, node, place)

    check_that_it_ends(failing, monkeypatch)


def test_a_failure_ends_the_nodes_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    process, begun, others = bounding.Bounding.process, threading.Event(), []

    def failing(self: bounding.Bounding, node: bounding.Node, place: bounding.NodePlace):
        if place.number == 3:
            begun.wait(60.0)
            raise MemoryError("no room for a certificate")
        if place.number > 1:
            begun.set()
            assert self.ended.wait(60.0)
            others.append(bounding.advance(node, 50, self.deadline, self.ended))
            return None
        return process(self, node, place)

    check_that_it_ends(failing, monkeypatch)
    assert others == [0]


def test_fewer_nodes_run_side_by_side_than_the_memory_of_the_whole_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(branch, "threads_of", lambda dimension: 5)
    monkeypatch.setattr(branch, "node_pool", lambda count: asked.append(count) or threads.node_pool(1))
    monkeypatch.setattr(bounding.Bounding, "finish", lambda self, node: False)
    for kept in (nodes_bytes, lambda num_groups, width: 0.0):
        monkeypatch.setattr(branch, "nodes_bytes", kept)
        answer = QuadraticSolver().solve(unstructured(9, 4, 5), time_limit_s=120.0, seed=0)
        assert answer.termination is Termination.OPTIMAL
    assert asked[0] > asked[1] == 1
