"""Intervals against scipy's distributions and simulation."""

import numpy as np
import pytest
import scipy  # which reads scipy.stats when a test asks for it

from hpcmpq.evaluate.statistics import (
    mean_with_interval,
    paired_difference,
    share_with_interval,
    summarise_data,
    t_quantile,
    weighted_mean_with_interval,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 31, 1000])
def test_quantiles_of_t(degrees: int):
    assert t_quantile(0.975, degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=2e-3)


def test_mean_agrees_with_scipy():
    value_N = np.random.default_rng(0).normal(3.0, 2.0, 40)
    found = mean_with_interval(value_N)
    assert found["stderr"] == pytest.approx(scipy.stats.sem(value_N))
    expected = scipy.stats.t.interval(0.95, 39, value_N.mean(), scipy.stats.sem(value_N))
    assert found["interval"] == pytest.approx(expected, rel=1e-5)


def test_one_sample_has_no_interval():
    assert mean_with_interval(np.array([2.0])) == {
        "mean": 2.0, "stderr": 0.0, "interval": None, "num_samples": 1
    }  # fmt: skip


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (37, 50)])
def test_share_agrees_with_wilson(right: int, count: int):
    expected = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    found = share_with_interval(np.arange(count) < right)
    assert found["interval"] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(400):
        low, high = mean_with_interval(generator.exponential(1.0, 64))["interval"]
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 400 <= 0.98


def test_pairing_removes_what_samples_share():
    generator = np.random.default_rng(2)
    hard_N = generator.normal(5.0, 2.0, 100)
    better_N, worse_N = hard_N + generator.normal(0.0, 0.05, 100), hard_N + 0.1
    found = paired_difference(better_N, worse_N)
    assert found["interval"][1] < 0
    assert found["stderr"] < 0.1 * mean_with_interval(hard_N)["stderr"]
    assert found["num_lower"] > 90
    assert found["num_higher"] + found["num_lower"] + found["num_equal"] == 100


def sequences(generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cross entropies [N] and numbers of tokens [N] of samples of which the long ones are the easy ones."""
    labels_N = generator.integers(1, 200, count)
    return 1.0 + 400.0 / (100 + labels_N) + generator.normal(0.0, 0.3, count), labels_N


def test_perplexity_is_over_tokens_and_losses_are_over_samples():
    generator = np.random.default_rng(3)
    ce_N, labels_N = sequences(generator, 50)
    models = {
        name: {"ce": ce_N + shift, "kl": 0.1 * ce_N, "labels": labels_N, "correct": labels_N // 2}
        for name, shift in (("original", 0.0), ("quantized", 0.5), ("uniform", 0.7))
    }
    values = summarise_data(models)
    tokens = np.concatenate([np.full(n, ce) for ce, n in zip(ce_N, labels_N, strict=True)])
    assert values["perplexity"]["original"] == pytest.approx(np.exp(tokens.mean()), rel=1e-12)
    assert values["perplexity"]["quantized"] == pytest.approx(np.exp(tokens.mean() + 0.5), rel=1e-12)
    assert abs(np.log(values["perplexity"]["original"]) - ce_N.mean()) > 0.2
    assert values["loss"]["original"] == pytest.approx(ce_N.mean())
    assert values["kl"]["original"] == pytest.approx(0.1 * ce_N.mean())
    assert values["num_tokens"] == labels_N.sum()
    low, high = values["intervals"]["perplexity"]["original"]
    assert low < values["perplexity"]["original"] < high


def test_intervals_over_tokens_hold_the_truth_about_as_often_as_they_say():
    generator, hits = np.random.default_rng(4), 0
    ce_N, labels_N = sequences(generator, 400_000)
    truth = (ce_N * labels_N).sum() / labels_N.sum()
    for _ in range(400):
        low, high = weighted_mean_with_interval(*sequences(generator, 64))["interval"]
        hits += low <= truth <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_samples_of_equally_many_tokens_weigh_as_before():
    ce_N = np.random.default_rng(5).normal(3.0, 1.0, 20)
    alike, plain = weighted_mean_with_interval(ce_N, np.full(20, 127)), mean_with_interval(ce_N)
    assert alike["mean"] == plain["mean"]
    assert alike["interval"] == pytest.approx(plain["interval"], rel=1e-13)
    assert weighted_mean_with_interval(ce_N[:1], np.array([5]))["interval"] is None
