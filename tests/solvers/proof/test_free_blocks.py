"""Convex forms with free blocks inside groups: valid against enumeration, convex by dense eigenvalues, and ahead."""

import numpy as np
import pytest

from bench.instances import Shape, make_instance
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.proof import spectral
from hpcmpq.solvers.proof.convex_form import Form
from hpcmpq.solvers.proof.free_blocks import covariance, gram, inner_places
from hpcmpq.solvers.proof.spectral import spectral_bound
from hpcmpq.solvers.search.tabu import search
from tests.solvers.proof.enumerated import enumerated


@pytest.mark.parametrize("steps", [2, 12])
def test_no_bound_exceeds_the_enumerated_optimum(steps: int) -> None:
    num_bounds = 0
    for instance, best, compact, choice_G in enumerated(12):
        bound = compact.original_objective(spectral_bound(compact, choice_G, np.inf, 0, steps))
        assert np.isfinite(bound)
        assert bound <= best[0] + 1e-12 * sum(map(abs, instance.terms(best[1])))
        num_bounds += 1
    assert num_bounds > 5


def instance(groups: int, indefinite: bool = False) -> tuple[Compact, np.ndarray, float]:
    compact = presolve(make_instance(Shape(groups, 7, 0.15, indefinite, 4.0)))
    assert isinstance(compact, Compact)
    found = search(compact, deadline=np.inf, seed=0, rounds=1)
    assert found is not None
    return compact, found[0], found[1]


@pytest.mark.parametrize("indefinite", [False, True])
def test_what_is_certified_is_convex_on_differences_and_leaves_a_tenth_of_the_gap(
    indefinite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact, choice_G, objective = instance(28, indefinite)
    forms: list[tuple[Form, float]] = []
    tangent = spectral.tangent_bound

    def noted(form: Form, y_P: np.ndarray) -> float:
        forms.append((form, tangent(form, y_P)))
        return forms[-1][1]

    monkeypatch.setattr(spectral, "tangent_bound", noted)
    bound = spectral_bound(compact, choice_G, np.inf, 0, 25)
    (_, first), (form, last) = forms
    assert bound == max(first, last)
    assert objective - last < (objective - first) / (2 if indefinite else 10)
    # The same matrix and a basis of all differences, written out.
    assert form.own is not None
    inner_PP = form.own.toarray() + form.alpha * np.eye(compact.num_options)
    inner_PP *= form.root_P * form.root_P[:, None]
    assert (inner_PP[compact.group_P[:, None] != compact.group_P] == 0).all()
    basis = []
    for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
        for p in range(start + 1, stop):
            column_P = np.zeros(compact.num_options)
            column_P[[start, p]] = -1.0, 1.0
            basis.append(column_P)
    basis_Pn = np.linalg.qr(np.array(basis).T)[0]
    least = np.linalg.eigvalsh(basis_Pn.T @ (compact.quad_PP + inner_PP) @ basis_Pn)[0]
    assert least > -1e-12 * np.linalg.norm(compact.quad_PP)
    y_P = np.full(compact.num_options, 1.0 / 7.0)
    assert np.allclose(form.inner(y_P), inner_PP @ y_P)
    assert np.allclose(form.linear_P, compact.linear_P - 0.5 * np.diagonal(inner_PP))


def test_entries_inside_groups_are_those_of_the_whole_matrices() -> None:
    compact, _, _ = instance(6)
    rng = np.random.default_rng(0)
    inner, root_P = inner_places(compact), rng.uniform(0.5, 2.0, compact.num_options)
    y_P, factor_Pr = rng.uniform(size=compact.num_options), rng.standard_normal((compact.num_options, 21))
    together = compact.group_P[:, None] == compact.group_P
    z_P = root_P * y_P
    expected = np.where(together, np.diag(root_P * z_P) - np.outer(z_P, z_P), 0.0)
    assert np.allclose(inner.matrix(covariance(inner, root_P, y_P)).toarray(), expected)
    whole = np.where(together, factor_Pr @ factor_Pr.T, 0.0)
    assert np.allclose(inner.matrix(gram(inner, factor_Pr)).toarray(), whole)
