"""Shrinkage of cross terms by their standard errors."""

import numpy as np
import pytest

from hpcmpq.solve.shrinkage import james_stein_factors


def test_entries_at_their_standard_error_vanish_and_clear_ones_stay() -> None:
    # Factors 1 − (1/1)² = 0, 1 − (1/2)² = 0.75 and 1 − (1/10)² = 0.99; below one standard error 0.
    quad_PP = np.array([[0.0, 1.0, -2.0], [1.0, 0.0, 10.0], [-2.0, 10.0, 0.5]])
    shrunk_PP = quad_PP * james_stein_factors(quad_PP, np.ones((3, 3)), 1.0)
    np.testing.assert_allclose(shrunk_PP, [[0.0, 0.0, -1.5], [0.0, 0.0, 9.9], [-1.5, 9.9, 0.0]])


def test_no_standard_error_or_no_strength_leaves_the_matrix() -> None:
    quad_PP = np.array([[0.0, 3.0], [3.0, 0.0]])
    np.testing.assert_array_equal(james_stein_factors(quad_PP, np.zeros((2, 2)), 1.0), np.ones((2, 2)))
    np.testing.assert_array_equal(james_stein_factors(quad_PP, np.full((2, 2), 9.0), 0.0), np.ones((2, 2)))


def test_shrinkage_lowers_the_squared_error_of_noisy_zeros() -> None:
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(20_000) < 0.2, 3.0 * rng.standard_normal(20_000), 0.0)
    noisy = (truth + rng.standard_normal(20_000))[None, :]
    shrunk = noisy * james_stein_factors(noisy, np.ones_like(noisy), 1.0)
    assert ((shrunk - truth) ** 2).mean() < 0.7 * ((noisy - truth) ** 2).mean()


def test_bad_standard_errors_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        james_stein_factors(np.zeros((2, 2)), np.zeros((3, 3)), 1.0)
    with pytest.raises(ValueError, match="NaN"):
        james_stein_factors(np.zeros((2, 2)), np.full((2, 2), np.nan), 1.0)
    with pytest.raises(ValueError, match="strength"):
        james_stein_factors(np.zeros((2, 2)), np.zeros((2, 2)), -1.0)
