"""The default shrinkage: its formula computed densely another way, its limits, and that it never hurts."""

import itertools
import math

import numpy as np
import pytest

from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.reliability import reliability
from hpcmpq.solve.shrinkage import shrunk

BITS = np.array([2, 3, 4, 8])


def truth(
    num_groups: int, rng: np.random.Generator, common: float, pairs: float
) -> tuple[np.ndarray, np.ndarray]:
    """c and H of groups × int2, int3, int4, int8: a small common part and a few strong pairs near the diagonal."""
    group_P = np.repeat(np.arange(num_groups), len(BITS))
    level_P = np.tile([1.0, 0.6, 0.3, 0.1], num_groups)
    linear_P = np.exp(rng.normal(0, 0.8, num_groups))[group_P] * np.tile(4.0 ** (2 - BITS), num_groups)
    linear_P /= linear_P.sum()
    distance_GG = np.abs(np.subtract.outer(np.arange(num_groups), np.arange(num_groups)))
    strong_GG = np.triu(rng.random((num_groups, num_groups)) < 0.5 * np.exp(-distance_GG / 3), 1)
    strength_GG = strong_GG * rng.normal(0, pairs, strong_GG.shape)
    correlation_GG = common + strength_GG + strength_GG.T
    correlation_PP = correlation_GG[np.ix_(group_P, group_P)] * np.outer(level_P, level_P)
    correlation_PP[group_P[:, None] == group_P] = 0
    scale_P = np.sqrt(2 * linear_P)
    return linear_P, correlation_PP * np.outer(scale_P, scale_P)


def measured(
    linear_P: np.ndarray, quad_PP: np.ndarray, num_samples: int, noise: float, rng: np.random.Generator
) -> QuadraticModel:
    """Means over samples of c and H, each sample with a heavy-tailed weight and heavy-tailed noise of its own."""
    num_options = len(linear_P)
    group_P = np.arange(num_options) // len(BITS)
    scale_P = np.sqrt(2 * linear_P)
    quad_NPP, linear_NP = [], []
    for _ in range(num_samples):
        error_PP = np.triu(rng.standard_t(3, quad_PP.shape) * noise / math.sqrt(3), 1)
        weight = math.exp(rng.normal(-0.18, 0.6))
        sample_PP = weight * (quad_PP + (error_PP + error_PP.T) * np.outer(scale_P, scale_P))
        quad_NPP.append(np.where(group_P[:, None] == group_P, 0.0, sample_PP))
        linear_NP.append(weight * linear_P * np.exp(rng.normal(-0.02, 0.2, num_options)))
    root = math.sqrt(num_samples)
    return QuadraticModel(
        option_group=tuple(f"g{group}" for group in group_P),
        option_format=tuple(f"int{bits}" for bits in np.tile(BITS, num_options // len(BITS))),
        linear_P=np.mean(linear_NP, 0),
        quad_PP=np.mean(quad_NPP, 0),
        stderr_linear_P=np.std(linear_NP, 0, ddof=1) / root,
        stderr_quad_PP=np.std(quad_NPP, 0, ddof=1) / root,
        loss0=0.0,
        objective="kl",
        method="secant",
        num_samples=num_samples,
        batch_linear_BP=np.array(linear_NP[:2]),
        batch_quad_BPP=np.array(quad_NPP[:2]),
    )


def relative(matrix_PP: np.ndarray, model: QuadraticModel) -> np.ndarray:
    """In units of √(c_p c_q), where options of all formats weigh alike."""
    return matrix_PP / np.sqrt(np.outer(model.linear_P, model.linear_P))


def pair_by_pair(model: QuadraticModel) -> np.ndarray:
    """The docstring's formula in plain loops over pairs."""
    num_options, bits = len(model.linear_P), [int(name[3:]) for name in model.option_format]
    a = [math.sqrt(2 * max(abs(c), e)) for c, e in zip(model.linear_P, model.stderr_linear_P, strict=True)]
    kinds: dict[tuple, list[tuple[float, float]]] = {}
    values = {}
    for p, q in itertools.combinations(range(num_options), 2):
        distance = int(model.option_group[q][1:]) - int(model.option_group[p][1:])
        if distance == 0 or model.stderr_quad_PP[p, q] == 0:
            continue
        formats = tuple(sorted((bits[p], bits[q])))
        kind = (formats, int(math.log2(distance)))
        r2, s2 = (model.quad_PP[p, q] / a[p] / a[q]) ** 2, (model.stderr_quad_PP[p, q] / a[p] / a[q]) ** 2
        values[p, q] = (kind, s2)
        for name in ((), formats, kind):
            kinds.setdefault(name, []).append((min(r2, 1.0), min(s2, 1.0)))
    factor = np.ones((num_options, num_options))
    for (p, q), (kind, s2) in values.items():
        tau2 = 0.0
        for name, prior in (((), 0), (kind[0], 20), (kind, 20)):
            found = np.array([r - s for r, s in kinds[name]])
            stderr = found.std() / math.sqrt(len(found))
            tau2 = max(0.0, (len(found) * (found.mean() - stderr) + prior * tau2) / (len(found) + prior))
        usual = float(np.mean([s for _, s in kinds[kind]]))
        moderated = (4 * usual + (model.num_samples - 1) * s2) / (4 + model.num_samples - 1)
        far = 1 - 3 * math.sqrt(moderated) * a[p] * a[q] / abs(model.quad_PP[p, q])
        factor[p, q] = factor[q, p] = max(tau2 / (tau2 + moderated), far)
    return factor


@pytest.mark.parametrize(("num_groups", "num_samples"), [(2, 2), (7, 4), (12, 9)])
def test_the_factors_are_the_formula_pair_by_pair(num_groups, num_samples, monkeypatch):
    rng = np.random.default_rng(num_groups)
    model = measured(*truth(num_groups, rng, 0.05, 0.3), num_samples, 0.2, rng)
    model.stderr_quad_PP[0, 5] = model.stderr_quad_PP[5, 0] = 0.0  # one exact pair
    model.linear_P[3] = -1e-3 * model.stderr_linear_P[3]  # and an option whose loss is below its noise
    expected_PP = pair_by_pair(model)
    for entries in (2**20, 50):  # in one step, and in many
        monkeypatch.setattr("hpcmpq.solve.reliability.STEP_ENTRIES", entries)
        ours = shrunk(model, "auto")
        np.testing.assert_allclose(ours.quad_PP, expected_PP * model.quad_PP, rtol=1e-12)
        np.testing.assert_allclose(ours.batch_quad_BPP, expected_PP * model.batch_quad_BPP, rtol=1e-12)
        np.testing.assert_array_equal(ours.quad_PP, ours.quad_PP.T)
    np.testing.assert_array_equal(ours.linear_P, model.linear_P)
    assert len(np.unique(expected_PP.round(6))) > 4  # the case tells apart


def test_without_standard_errors_or_noise_the_matrix_stays():
    rng = np.random.default_rng(1)
    linear_P, quad_PP = truth(10, rng, 0.05, 0.3)
    exact = measured(linear_P, quad_PP, 4, 0.2, rng)
    exact.stderr_quad_PP[:] = 0.0
    np.testing.assert_array_equal(shrunk(exact, "auto").quad_PP, exact.quad_PP)
    scale_P = np.sqrt(2 * linear_P)
    sharp = measured(linear_P, quad_PP, 4, 0.2, rng)
    sharp.quad_PP[:] = quad_PP
    for size, tolerance in ((1e-2, 0.3), (1e-3, 1e-2), (1e-4, 1e-4)):
        sharp.stderr_quad_PP[:] = size * np.outer(scale_P, scale_P)
        difference_PP = relative(shrunk(sharp, "auto").quad_PP - quad_PP, exact)
        assert np.linalg.norm(difference_PP) < tolerance * np.linalg.norm(relative(quad_PP, exact))


@pytest.mark.parametrize("num_samples", [2, 4, 16])
def test_noise_alone_leaves_next_to_nothing(num_samples):
    for seed in range(5):
        rng = np.random.default_rng([num_samples, seed])
        linear_P, none_PP = truth(20, rng, 0.0, 0.0)
        model = measured(linear_P, none_PP, num_samples, 0.3, rng)
        left_PP = relative(shrunk(model, "auto").quad_PP, model)
        assert np.linalg.norm(left_PP) < 0.15 * np.linalg.norm(relative(model.quad_PP, model))


@pytest.mark.parametrize("num_samples", [2, 4, 16])
def test_estimates_are_nearer_to_the_truth_than_dropped_measured_and_entrywise(num_samples):
    errors = {"auto": 0.0, 0: 0.0, 1.0: 0.0, "dropped": 0.0}
    for seed in range(5):
        rng = np.random.default_rng([num_samples, seed])
        linear_P, quad_PP = truth(24, rng, 0.05, 0.4)
        model = measured(linear_P, quad_PP, num_samples, 0.2, rng)
        for name in errors:
            found_PP = np.zeros_like(quad_PP) if name == "dropped" else shrunk(model, name).quad_PP
            errors[name] += float((relative(found_PP - quad_PP, model) ** 2).sum())
    assert errors["auto"] < 0.9 * min(error for name, error in errors.items() if name != "auto")


@pytest.mark.parametrize("num_samples", [2, 4, 16])
@pytest.mark.parametrize(("common", "pairs"), [(0.0, 0.0), (0.01, 0.15), (0.05, 0.4)])
def test_solutions_are_never_worse_than_with_cross_terms_dropped_beyond_noise(num_samples, common, pairs):
    changes, unshrunk = [], []
    for seed in range(30):
        rng = np.random.default_rng([num_samples, int(1000 * pairs), seed])
        linear_P, quad_PP = truth(NUM_GROUPS, rng, common, pairs)
        model = measured(linear_P, quad_PP, num_samples, 0.3, rng)
        estimates = [shrunk(model, "auto").quad_PP, 0 * quad_PP, model.quad_PP]
        ours, dropped, full = true_losses(linear_P, quad_PP, model, estimates)
        changes.append(ours / dropped - 1)
        unshrunk.append(full / dropped - 1)
    stderr = np.std(changes, ddof=1) / math.sqrt(len(changes))
    assert np.mean(changes) <= max(2 * stderr, 0.01)
    assert pairs > 0 or np.mean(unshrunk) > 0.04  # the noise would hurt


def test_clear_interactions_are_used():
    losses = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        linear_P, quad_PP = truth(NUM_GROUPS, rng, 0.05, 0.4)
        model = measured(linear_P, quad_PP, 16, 0.05, rng)
        estimates = [shrunk(model, "auto").quad_PP, 0 * quad_PP, quad_PP]
        losses.append(true_losses(linear_P, quad_PP, model, estimates))
    ours, dropped, known = np.mean(losses, 0)
    assert dropped - ours > 0.6 * (dropped - known) > 0.02 * known


NUM_GROUPS = 8
CHOICES_CG = np.array(list(itertools.product(range(len(BITS)), repeat=NUM_GROUPS)))
CHOICES_CG = CHOICES_CG[BITS[CHOICES_CG].mean(1) <= 3.0] + len(BITS) * np.arange(NUM_GROUPS)


def true_losses(
    linear_P: np.ndarray, quad_PP: np.ndarray, model: QuadraticModel, estimates: list[np.ndarray]
) -> list[float]:
    """What the best choice at 3 bits by measured c and each estimate of H really loses; by enumeration."""
    alone_C = model.linear_P[CHOICES_CG].sum(1)
    losses = []
    for found_PP in estimates:
        together_C = sum(
            found_PP[CHOICES_CG[:, i], CHOICES_CG[:, j]]
            for i, j in itertools.combinations(range(NUM_GROUPS), 2)
        )
        best_G = CHOICES_CG[np.argmin(alone_C + together_C)]
        losses.append(float(linear_P[best_G].sum() + quad_PP[np.ix_(best_G, best_G)].sum() / 2))
    return losses


def test_it_is_the_default():
    assert SolverConfig().shrink == "auto"


def test_bad_standard_errors_are_refused():
    two, groups = np.zeros((2, 2)), np.arange(2)
    with pytest.raises(ValueError, match="shape"):
        reliability(two, np.zeros((3, 3)), np.ones(2), np.zeros(2), groups, groups, 4)
    with pytest.raises(ValueError, match="NaN"):
        reliability(two, np.full((2, 2), np.nan), np.ones(2), np.zeros(2), groups, groups, 4)
    with pytest.raises(ValueError, match="≥ 0"):
        reliability(two, two, np.ones(2), np.array([-1.0, 0.0]), groups, groups, 4)
