"""Realistic synthetic instances of the bit-assignment problem.

Axis letters: P options, G groups, R directions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmpq.cross_terms import blocked
from hpcmpq.problem import Budget, Cost, Problem
from hpcmpq.solve.shrinkage import james_stein_factors

SHAPES = {"resnet18": 20, "tiny28": 28, "resnet50": 54, "llama8b": 224, "llama70b": 560, "moe": 2000}
"""Groups of the shapes."""

COHERENCE = {"weak": 0.05, "medium": 0.15, "strong": 0.30}
"""Fraction of the error energy in the coherent low-rank part."""


@dataclass(frozen=True)
class Shape:
    """What `make_instance` needs; options are bit widths from 2 up."""

    groups: int
    options: int = 7
    coherence: float = 0.15
    indefinite: bool = False
    bits: float = 4.0
    seed: int = 0


def make_instance(shape: Shape) -> Problem:
    """A problem with the statistics of measured quadratics.

    Options are 2, 3, ... bits. A group's sensitivity is log-normal (σ 0.8), larger at both ends of the
    network and by layer type; error energy falls 4× per bit, 1.6× extra at 2 bits. Feature vectors φ_p are
    a coherent part (12 directions, autocorrelated over depth, with a positive mean, fraction falling from
    1 at 2 bits to 0.3 at 8) plus an idiosyncratic part: a group's error in 2,048 directions with a power-law
    spectrum, partly shared between its options. H = Φ D Φᵀ with D = 1, or −1 on a tenth of the directions.
    c is half the squared norm. One budget: average bits, weighted by layer sizes.
    """
    rng = np.random.default_rng(shape.seed)
    num_groups, num_options = shape.groups, shape.options
    bits_O = np.arange(2, 2 + num_options)
    depth_G = np.arange(num_groups) / max(1, num_groups - 1)
    type_G = np.arange(num_groups) % 7
    ends_G = 1.0 + 2.0 * np.exp(-depth_G * 12) + 1.5 * np.exp(-(1 - depth_G) * 12)
    sensitivity_G = (
        rng.lognormal(0, 0.8, num_groups) * ends_G * np.array([1.0, 0.6, 1.4, 1.0, 0.8, 0.8, 1.6])[type_G]
    )
    size_G = np.array([1.0, 0.25, 0.25, 1.0, 3.5, 3.5, 3.5])[type_G] * rng.choice([1.0, 2.0], num_groups)
    energy_GO = sensitivity_G[:, None] * 4.0 ** -(bits_O - 2)[None, :]
    energy_GO[:, 0] *= 1.6
    rank = 12
    fraction_O = shape.coherence * np.linspace(1.0, 0.3, 7)[np.minimum(bits_O - 2, 6)]
    walk_GR = np.empty((num_groups, rank))
    walk_GR[0] = rng.standard_normal(rank)
    for g in range(1, num_groups):
        walk_GR[g] = 0.9 * walk_GR[g - 1] + np.sqrt(1 - 0.81) * rng.standard_normal(rank)
    coherent_GOR = walk_GR[:, None, :] + 0.3 * rng.standard_normal((num_groups, num_options, rank))
    coherent_GOR[:, :, 0] += 1.5  # the mean shift: coherent interactions are positive on the whole
    coherent_GOR /= np.linalg.norm(coherent_GOR, axis=2, keepdims=True)
    coherent_PR = (coherent_GOR * np.sqrt(energy_GO * fraction_O)[:, :, None]).reshape(-1, rank)
    directions = 2048
    spectrum_R = np.arange(1, directions + 1) ** -0.4
    own_GOR = 0.7 * rng.standard_normal((num_groups, 1, directions), dtype=np.float32)
    own_GOR = own_GOR + 0.7 * rng.standard_normal((num_groups, num_options, directions), dtype=np.float32)
    own_GOR *= spectrum_R.astype(np.float32)
    own_GOR /= np.linalg.norm(own_GOR, axis=2, keepdims=True)
    own_PR = (own_GOR * np.sqrt(energy_GO * (1 - fraction_O))[:, :, None].astype(np.float32)).reshape(
        -1, directions
    )
    phi_PR = np.concatenate([coherent_PR, own_PR], axis=1)
    negative_R = np.zeros(phi_PR.shape[1], bool)
    if shape.indefinite:
        negative_R[rng.choice(np.arange(rank, phi_PR.shape[1]), phi_PR.shape[1] // 10, replace=False)] = True
    linear_P = 0.5 * (phi_PR**2).sum(axis=1)
    plus_PR, minus_PR = phi_PR[:, ~negative_R], phi_PR[:, negative_R]
    quad_PP = plus_PR @ plus_PR.T  # A Aᵀ is exactly symmetric in BLAS
    if shape.indefinite:
        quad_PP -= minus_PR @ minus_PR.T
    group_P = np.repeat(np.arange(num_groups), num_options)
    for g in range(num_groups):
        block = slice(g * num_options, (g + 1) * num_options)
        quad_PP[block, block] = 0.0
    cost_P = (size_G[:, None] * bits_O[None, :]).ravel() / size_G.sum()
    budget = Budget(Cost("weight_bits", "bits per weight", cost_P), shape.bits)
    return Problem(linear_P, quad_PP, group_P, (budget,))


def make_blocked_instance(num_blocks: int, groups: int = 60, bits: float = 3.5, seed: int = 0) -> Problem:
    """Dense blocks of `make_instance` (experts), 2 to 5 bits, medium coherence, and few cross terms between them.

    Every group is linked to about four groups of other blocks. A link's correlations have a common part of 0.08 and
    parts of their own of 0.06, as large as those of two groups of one block without coherence.
    """
    rng = np.random.default_rng(seed)
    parts = [make_instance(Shape(groups, 4, bits=bits, seed=1000 * seed + b)) for b in range(num_blocks)]
    linear_P = np.concatenate([part.linear_P for part in parts])
    cost_P = np.concatenate([part.budgets[0].cost.linear_P for part in parts]) / num_blocks
    first = np.repeat(np.arange(num_blocks * groups), 2)
    second = rng.integers(0, num_blocks * groups, len(first))
    apart = first // groups != second // groups
    first, second = first[apart], second[apart]
    option_O = np.arange(4)
    row, column = np.broadcast_arrays(
        4 * first[:, None, None] + option_O[:, None], 4 * second[:, None, None] + option_O
    )
    common = 0.08 * rng.standard_normal((len(first), 1, 1))
    correlation = common + 0.06 * rng.standard_normal((len(first), 4, 4))
    value = correlation * 2.0 * np.sqrt(linear_P[row] * linear_P[column])
    width = 4 * groups
    blocks = [(np.arange(b * width, (b + 1) * width), part.quad_PP) for b, part in enumerate(parts)]
    quad_PP = blocked(len(linear_P), blocks, row.ravel(), column.ravel(), value.ravel())
    budget = Budget(Cost("weight_bits", "bits per weight", cost_P), bits)
    return Problem(linear_P, quad_PP, np.repeat(np.arange(num_blocks * groups), 4), (budget,))


def measured_instance(path: Path, bits: float, shrink: float = 0.0) -> Problem:
    """A measured quadratic, from a numpy file with linear, quad, stderr_quad, group, bits and numel.

    Args:
        path: The file.
        bits: Limit of `weight_bits`.
        shrink: Standard errors that cross terms are shrunk by; 0 for all as measured.
    """
    kept = np.load(path)
    group_P = kept["group"].astype(np.int64)
    quad_PP = kept["quad"].astype(np.float64)
    quad_PP = 0.5 * (quad_PP + quad_PP.T)
    quad_PP[group_P[:, None] == group_P] = 0.0
    if shrink:
        quad_PP *= james_stein_factors(quad_PP, kept["stderr_quad"].astype(np.float64), shrink)
    cost_P = kept["numel"][group_P] * kept["bits"] / kept["numel"].sum()
    budget = Budget(Cost("weight_bits", "bits per weight", cost_P), bits)
    return Problem(kept["linear"], quad_PP, group_P, (budget,))
