"""How flips of experts' choices add up: `flip_terms` of `hpcmpq.quadratic`."""

import numpy as np
import pytest

from hpcmpq.quadratic import flip_terms, quadratic_increase

# Four groups of two options; the second option flips a tenth of what the first does.
SHARES = np.array([0.5, 0.3, 0.15, 0.05])
FLIPS, GROUPS = np.ravel(np.outer(SHARES, [1.0, 0.1])), np.repeat(np.arange(4), 2)


@pytest.mark.parametrize("num_groups", [1, 2, 5, 40])
def test_as_many_flips_in_each_group_add_up_as_a_root_of_squares(num_groups):
    flips = np.full(num_groups, 0.3)
    terms = flip_terms(flips, np.arange(num_groups))
    found = quadratic_increase(flips, terms, np.arange(num_groups))
    assert found == pytest.approx(0.3 * np.sqrt(num_groups))


def test_flips_that_groups_share_as_usual_add_up_exactly_at_any_size():
    terms = flip_terms(FLIPS, GROUPS)
    for place, size in enumerate((1.0, 0.1)):
        found = quadratic_increase(FLIPS, terms, 2 * np.arange(4) + place)
        assert found == pytest.approx(size * np.sqrt((SHARES**2).sum()), rel=1e-6)
    assert np.array_equal(terms, terms.T)
    assert not terms[GROUPS[:, None] == GROUPS].any()


def test_slopes_are_those_of_the_root():
    """A thousandth more flips of one group: (√((1+ε)² s² + ...) − √(s² + ...)) / ε."""
    total = np.sqrt((SHARES**2).sum())
    for group in range(4):
        more = SHARES.copy()
        more[group] *= 1.001
        terms = flip_terms(FLIPS, GROUPS)
        # The off-diagonal terms are products of a number of each option that is a root of its flips.
        root = np.sqrt(np.outer(more, more) / np.outer(SHARES, SHARES))
        first = 2 * np.arange(4)
        found = more.sum() + 0.5 * (terms[np.ix_(first, first)] * root).sum()
        slope = (found - total) / (more[group] - SHARES[group])
        assert slope == pytest.approx(SHARES[group] / total, abs=2e-3)


def test_the_sum_is_at_least_the_plane_that_touches_the_root():
    generator = np.random.default_rng(0)
    flips = generator.lognormal(sigma=2.0, size=60)
    groups = np.repeat(np.arange(12), 5)
    terms = flip_terms(flips, groups)
    usual = np.mean([flips[place::5] / flips[place::5].sum() for place in range(5)], axis=0)
    for _ in range(200):
        choice = 5 * np.arange(12) + generator.integers(0, 5, 12)
        plane = usual @ flips[choice] / np.linalg.norm(usual)
        assert quadratic_increase(flips, terms, choice) >= plane * (1 - 1e-9) > 0


def test_no_flips_make_no_cross_terms():
    assert not flip_terms(np.zeros(4), np.array([0, 0, 1, 1])).any()
    one = flip_terms(np.array([0.5, 0.2, 0.0, 0.0]), np.array([0, 0, 1, 1]))
    assert not one.any()
