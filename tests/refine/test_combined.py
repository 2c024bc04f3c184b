"""Measured and predicted changes as one: against Gaussian conditioning, and never much worse than the better one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmpq.refine.combined import combined


def test_exact_measurements_are_taken_as_they_are():
    random = np.random.default_rng(0)
    measured_R = random.normal(size=20)
    found = combined(measured_R, np.zeros(20), random.normal(size=20), np.ones(20))
    np.testing.assert_allclose(found.change_R, measured_R, rtol=1e-12)
    assert (found.weight_R == 1).all()


def test_the_estimate_is_the_conditional_mean_of_its_model():
    """By conditioning the joint Gaussian of (change, measurement) densely."""
    random = np.random.default_rng(1)
    predicted_R, scale_R, stderr_R = (
        random.normal(size=30),
        random.lognormal(size=30),
        random.lognormal(size=30),
    )
    measured_R = 1.3 * predicted_R + random.normal(size=30) * np.hypot(0.4 * scale_R, stderr_R)
    found = combined(measured_R, stderr_R, predicted_R, scale_R)
    prior_RR = np.diag((found.discrepancy * scale_R) ** 2)
    gain_RR = prior_RR @ np.linalg.inv(prior_RR + np.diag(stderr_R**2))
    mean_R = found.ratio * predicted_R
    np.testing.assert_allclose(
        found.change_R, mean_R + gain_RR @ (measured_R - mean_R), rtol=1e-9, atol=1e-12
    )


def test_ratio_and_discrepancy_are_found():
    random = np.random.default_rng(2)
    predicted_R, scale_R = random.normal(size=4000), random.lognormal(size=4000)
    stderr_R = 0.1 * random.lognormal(size=4000)
    change_R = 0.7 * predicted_R + 0.3 * scale_R * random.normal(size=4000)
    found = combined(change_R + stderr_R * random.normal(size=4000), stderr_R, predicted_R, scale_R)
    assert found.ratio == pytest.approx(0.7, abs=0.05)
    assert found.discrepancy == pytest.approx(0.3, rel=0.15)


@settings(max_examples=30, deadline=None)
@given(
    noise=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    discrepancy=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    ratio=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_never_much_worse_than_the_better_of_the_two(noise, discrepancy, ratio, seed):
    random = np.random.default_rng(seed)
    scale_R = random.lognormal(size=400)
    predicted_R = scale_R * random.normal(size=400)
    change_R = ratio * predicted_R + discrepancy * scale_R * random.normal(size=400)
    stderr_R = noise * scale_R
    measured_R = change_R + stderr_R * random.normal(size=400)

    def error(estimate_R: np.ndarray) -> float:
        return float((((estimate_R - change_R) / scale_R) ** 2).mean())

    found = combined(measured_R, stderr_R, predicted_R, scale_R)
    # A prediction that is off by one factor throughout is no worse than one that is not: the factor is estimated.
    assert (
        error(found.change_R) <= 1.15 * min(error(measured_R), error(ratio * predicted_R)) + 0.08 * noise**2
    )


def test_predictions_of_nothing_leave_measurements_shrunk_to_zero():
    random = np.random.default_rng(3)
    stderr_R = np.full(500, 1.0)
    found = combined(stderr_R * random.normal(size=500), stderr_R, np.zeros(500), np.ones(500))
    assert found.ratio == 0
    assert np.abs(found.change_R).max() < 0.5
