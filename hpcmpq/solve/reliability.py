"""How far to trust each cross term: the reliability of its kind, by empirical Bayes.

Cross terms are means over few samples, most of them small beside their standard errors, and one option interacts
with hundreds of others. What a single entry cannot tell, thousands of its kind can: how large true interactions
between these two formats, at this distance, usually are. In units of the options' own losses,

    r_pq = H_pq / (a_p a_q),   s_pq = se_pq / (a_p a_q),   a_p² = 2 max(|c_p|, se(c_p)),

let the kind κ of a pair be its two formats and ⌊log2⌋ of the distance of its groups in the model. With true values
r ~ N(0, τ_κ²) and noise N(0, s̃²) the posterior mean is r τ_κ² / (τ_κ² + s̃²). A few pairs interact far more
strongly than their kind, so no entry is moved by more than three standard errors:

    H̃_pq = H_pq · max(τ_κ² / (τ_κ² + s̃_pq²), 1 − 3 s̃_pq / |r_pq|),
    τ_κ²  = max(0, mean over κ of r² − s², less its standard error),
    s̃_pq² = (ν₀ mean over κ of s² + ν s_pq²) / (ν₀ + ν),   ν = samples − 1, ν₀ = 4.

τ² is cross-validation without splits: r² − s² of N samples is the mean of the products of their values over all
pairs of *different* samples, so that mean / (mean + s²) is the slope of what other samples show on what these show.
Less its standard error, it believes in a kind's interactions only as far as they are established, because a solver
loses more by noise than it gains by small interactions. The mean of a kind with few pairs is pulled to that of all
distances, and this to that of all formats, by the weight of 20 pairs. Standard errors of few samples are noisy
themselves, most of all where few tokens dominate; s̃ moderates them by their kind's.

The least expected loss given the data is the least posterior mean, so the solver has nothing left to exploit
(optimiser's curse) as far as the model of the noise holds. Limits: without noise H stays, and noise alone leaves
next to nothing, as if cross terms were dropped.

Source: Efron and Morris (1973), Stein's estimation rule and its competitors: shrinkage by kind; (1972), Limiting the
risk of Bayes and empirical Bayes estimators, II: the limited translation. Smyth (2004), Linear models and empirical
Bayes methods: moderated variances.

Axis letters: P options, R rows of one step, C its columns, F pairs of formats, D distances, B kinds, n
counted pairs.
"""

from collections.abc import Iterator

import numpy as np

PRIOR_PAIRS = 20.0
"""Weight of the wider kind's mean, in pairs."""

PRIOR_DEGREES = 4.0
"""ν₀: weight of the kind's mean variance, in samples."""

LARGEST_MOVE = 3.0
"""Standard errors by which an entry is moved at most."""

STEP_ENTRIES = 2**20
"""Entries of the matrix that are worked on at once."""


def reliability(
    quad_PP: np.ndarray,
    stderr_PP: np.ndarray,
    linear_P: np.ndarray,
    stderr_linear_P: np.ndarray,
    group_P: np.ndarray,
    format_P: np.ndarray,
    num_samples: int,
) -> np.ndarray:
    """The factors max(τ² / (τ² + s̃²), 1 − 3 s̃ / |r|) in [0, 1] of all cross terms, float64 [P, P], symmetric.

    1 where the standard error is zero: exact, or not estimated.

    Args:
        quad_PP: H, symmetric float64 [P, P]; entries inside groups are not looked at.
        stderr_PP: Its standard errors, ≥ 0, symmetric.
        linear_P: c, the loss of each option alone, float64 [P].
        stderr_linear_P: Its standard errors, ≥ 0; zero where not estimated.
        group_P: Group of every option, int [P], increasing, numbered from 0 in the model's order.
        format_P: Format of every option, [P], names or numbers.
        num_samples: Samples behind each standard error.

    Raises:
        ValueError: If shapes disagree, or a standard error is negative or NaN.

    Example:
        Entries that are as large as their noise explains are not believed at all, clear ones almost wholly:

        >>> def factor(value):
        ...     quad, error = np.full((2, 2), value), np.full((2, 2), 0.1)
        ...     c, groups = np.full(2, 0.5), np.array([0, 1])
        ...     return float(reliability(quad, error, c, np.zeros(2), groups, groups, 8)[0, 1].round(3))
        >>> factor(0.1), factor(1.0)
        (0.0, 0.99)
    """
    shape = (len(linear_P), len(linear_P))
    if quad_PP.shape != shape or stderr_PP.shape != shape:
        raise ValueError(
            f"cross terms have shape {quad_PP.shape}, their standard errors {stderr_PP.shape}; must be {shape}"
        )
    if not (stderr_PP >= 0).all() or not (stderr_linear_P >= 0).all():
        raise ValueError("standard errors must be ≥ 0 and not NaN")
    scale_P = np.sqrt(np.maximum(2.0 * np.maximum(np.abs(linear_P), stderr_linear_P), TINY))
    count_FD, noise_FD, signal_FD, square_FD = _moments(quad_PP, stderr_PP, scale_P, group_P, format_P)
    variance_B = _pooled(count_FD, signal_FD, square_FD).ravel()
    noise_B = (noise_FD / np.maximum(count_FD, 1.0)).ravel()
    degrees = max(num_samples - 1, 0)
    factor_PP = np.ones(shape)
    for rows, columns, kind_RC, noisy_RC in _steps(stderr_PP, group_P, format_P):
        unit_RC = scale_P[rows, None] * scale_P[columns]
        noise_RC = PRIOR_DEGREES * noise_B[kind_RC] + degrees * (stderr_PP[rows, columns] / unit_RC) ** 2
        noise_RC /= PRIOR_DEGREES + degrees
        variance_RC = variance_B[kind_RC]
        size_RC = np.abs(quad_PP[rows, columns]) / unit_RC
        far_RC = 1.0 - LARGEST_MOVE * np.sqrt(noise_RC) / np.maximum(size_RC, TINY)
        usual_RC = np.divide(variance_RC, variance_RC + noise_RC, out=np.ones_like(noise_RC), where=noisy_RC)
        factor_PP[rows, columns] = np.maximum(usual_RC, far_RC)
    return np.minimum(factor_PP, factor_PP.T)


TINY = 1e-100
"""Least a_p²: of an option without any loss, no entry of which can be told from noise."""


def _moments(
    quad_PP: np.ndarray,
    stderr_PP: np.ndarray,
    scale_P: np.ndarray,
    group_P: np.ndarray,
    format_P: np.ndarray,
) -> np.ndarray:
    """Pairs, Σ s², Σ (r² − s²) and Σ (r² − s²)² of every kind, float64 [4, F, D].

    r² and s² count as at most 1, the largest square of a correlation, so that options with losses near zero do not
    drown the others.
    """
    num_formats, num_distances = len(np.unique(format_P)), int(group_P[-1]).bit_length() + 1
    totals = np.zeros((4, num_formats**2 * num_distances))
    for rows, columns, kind_RC, noisy_RC in _steps(stderr_PP, group_P, format_P):
        unit_n = (scale_P[rows, None] * scale_P[columns])[noisy_RC]
        square_n = np.minimum((quad_PP[rows, columns][noisy_RC] / unit_n) ** 2, 1.0)
        noise_n = np.minimum((stderr_PP[rows, columns][noisy_RC] / unit_n) ** 2, 1.0)
        kind_n = kind_RC[noisy_RC]
        signal_n = square_n - noise_n
        for total_B, weight_n in zip(totals, (None, noise_n, signal_n, signal_n**2), strict=True):
            total_B += np.bincount(kind_n, weight_n, minlength=len(total_B))
    return totals.reshape(4, num_formats**2, num_distances)


def _pooled(count_FD: np.ndarray, signal_FD: np.ndarray, square_FD: np.ndarray) -> np.ndarray:
    """τ² of every kind [F, D]: of all pairs, then by formats, then by distance too, each a prior of the next."""
    moments = np.stack([count_FD, signal_FD, square_FD])
    variance = _established(moments.sum((1, 2), keepdims=True), np.zeros((1, 1)), 0.0)
    variance = _established(moments.sum(2, keepdims=True), variance, PRIOR_PAIRS)
    return _established(moments, variance, PRIOR_PAIRS)


def _established(moments: np.ndarray, prior: np.ndarray, prior_pairs: float) -> np.ndarray:
    """Means less their standard errors, pulled to `prior`, at least 0; of moments (count, sum, sum of squares)."""
    count, signal, square = moments
    spread = np.sqrt(np.maximum(square - signal**2 / np.maximum(count, 1.0), 0.0))
    mean = (signal - spread + prior_pairs * prior) / np.maximum(count + prior_pairs, 1.0)
    return np.maximum(mean, 0.0)


def _steps(
    stderr_PP: np.ndarray, group_P: np.ndarray, format_P: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """Rows and the columns from there on, the kinds of their pairs [R, C], and which pairs are counted [R, C].

    Those whose column is of a later group, so that every pair counts once, and that have a standard error.
    """
    names, number_P = np.unique(format_P, return_inverse=True)
    num_distances = int(group_P[-1]).bit_length() + 1
    distances = np.array([max(distance.bit_length() - 1, 0) for distance in range(int(group_P[-1]) + 1)])
    rows_per_step = max(1, STEP_ENTRIES // len(group_P))
    for start in range(0, len(group_P), rows_per_step):
        rows, columns = slice(start, start + rows_per_step), slice(start, None)
        distance_RC = group_P[columns] - group_P[rows, None]
        low_RC = np.minimum(number_P[rows, None], number_P[columns])
        high_RC = np.maximum(number_P[rows, None], number_P[columns])
        kind_RC = (low_RC * len(names) + high_RC) * num_distances + distances[np.abs(distance_RC)]
        yield rows, columns, kind_RC, (distance_RC > 0) & (stderr_PP[rows, columns] > 0)
