"""The link is monotone, exact on power laws, and its intervals cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmpq.refine.link import fit_link


@given(st.floats(0.1, 10), st.floats(0.2, 2))
def test_power_laws_are_recovered(factor, power):
    x = np.geomspace(1e-4, 1, 8)
    link = fit_link(x, factor * x**power)
    assert link.measured(0.01) == pytest.approx(factor * 0.01**power, rel=1e-9)


@given(st.lists(st.floats(1e-6, 10), min_size=3, max_size=20), st.integers(0, 1000))
def test_it_is_monotone_whatever_the_data(values, seed):
    x = np.array(values)
    link = fit_link(x, np.random.default_rng(seed).uniform(1e-6, 1, len(x)))
    assert link.measured(1e-3) <= link.measured(1e-2) * (1 + 1e-12)


def test_intervals_cover_new_points():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        x = np.exp(random.uniform(-6, 0, 17))
        y = 0.8 * x**0.9 * np.exp(random.normal(0, 0.1, 17))
        low, high = fit_link(x[:16], y[:16]).interval(x[16])
        covered += low <= y[16] <= high
    assert covered >= 0.85 * 300


@pytest.mark.parametrize("wanted", [-0.02, 0.0, 0.03])
def test_falling_losses_take_a_line(wanted):
    random = np.random.default_rng(1)
    x = np.linspace(-0.05, 0.05, 16)
    link = fit_link(x, 0.01 + 0.5 * x + random.normal(0, 1e-3, 16), wanted)
    low, high = link.interval(wanted)
    assert link.measured(wanted) == pytest.approx(0.01 + 0.5 * wanted, abs=1e-3)
    assert low < link.measured(wanted) < high < low + 0.01


def test_a_predicted_fall_among_rises_takes_a_line():
    x = np.geomspace(0.01, 1, 8)
    assert fit_link(x, x, 0.1).logarithmic
    assert fit_link(x, x, -0.1).measured(-0.1) == pytest.approx(-0.1)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        fit_link(np.ones(2), np.ones(2))
