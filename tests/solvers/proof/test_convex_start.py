"""A start from a convex form: valid against enumeration, as good as the form's tangent, ahead of a cold start."""

import numpy as np
import pytest

from bench.instances import Shape, make_instance
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof import convex_start
from hpcmpq.solvers.proof.admm import certified
from hpcmpq.solvers.proof.convex_form import Form, tangent_bound
from hpcmpq.solvers.proof.node import Node, advance, all_pairs, make_node, padded_pairs, preconditioner
from hpcmpq.solvers.proof.spectral import convex_form
from hpcmpq.solvers.search.tabu import search
from tests.solvers.proof.enumerated import enumerated


def started(compact: Compact, choice_G: np.ndarray) -> Node:
    node = make_node(compact, all_pairs(compact), preconditioner(compact, choice_G))
    node.state = convex_start.start(compact, node.relaxation, node.projector, node.state, choice_G, 0, np.inf)
    return node


def test_no_bound_of_a_convex_start_exceeds_the_enumerated_optimum() -> None:
    num_bounds = 0
    for instance, best, compact, choice_G in enumerated(25):
        for steps in (1, 7):
            node = started(compact, choice_G)
            advance(node, steps, np.inf)
            assert np.isfinite(node.bound)
            bound = compact.original_objective(node.bound)
            assert bound <= best[0] + 1e-12 * sum(map(abs, instance.terms(best[1])))
            num_bounds += 1
    assert num_bounds > 20


@pytest.mark.parametrize("indefinite", [False, True])
def test_the_first_multiplier_proves_what_the_tangent_of_the_convex_form_does(indefinite: bool) -> None:
    compact = presolve(make_instance(Shape(12, 5, 0.3, indefinite, 3.0)))
    assert isinstance(compact, Compact)
    found = search(compact, deadline=np.inf, seed=0, rounds=1)
    assert found is not None
    shift_P, y_P = convex_form(compact, found[0], 0, np.inf)
    form = Form(compact, np.zeros((0, 0)), np.sqrt(shift_P), 1.0)
    tangent = tangent_bound(form, y_P)
    assert tangent_bound(form, 1.01 * y_P) == pytest.approx(tangent, rel=1e-12)  # of a point of the simplices
    node = started(compact, found[0])
    bound = certified(node.relaxation, node.state.z_NN, padded_pairs(node))
    assert tangent - 1e-6 * abs(tangent) <= bound.value <= found[1]


def test_a_convex_start_is_ahead_of_a_cold_one() -> None:
    compact = presolve(make_instance(Shape(20, 7, 0.15, False, 4.0)))
    assert isinstance(compact, Compact)
    found = search(compact, deadline=np.inf, seed=0, rounds=1)
    assert found is not None
    cold = make_node(compact, all_pairs(compact), preconditioner(compact, found[0]))
    warm = started(compact, found[0])
    for node in (cold, warm):
        advance(node, 10, np.inf)
    assert found[1] - warm.bound < 0.5 * (found[1] - cold.bound)


def test_prices_out_of_proportion_leave_the_cold_start(monkeypatch) -> None:
    compact = presolve(make_instance(Shape(4, 4, 0.3, False, 3.0)))
    assert isinstance(compact, Compact)
    choice_G = compact.offset_H[:-1]
    monkeypatch.setattr(convex_start, "best_prices", lambda *_: np.full(len(compact.limit_C), 1e18))
    node = make_node(compact, all_pairs(compact), preconditioner(compact, choice_G))
    assert (
        convex_start.start(compact, node.relaxation, node.projector, node.state, choice_G, 0, np.inf)
        is node.state
    )
