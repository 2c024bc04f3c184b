"""Messages change no choice's sum of terms, leave excesses and raise the bound, against trying all choices."""

import itertools

import numpy as np
import pytest

from hpcmpq.solvers.proof.messages import tightened


def random_terms(rng: np.random.Generator, groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Own terms [G, k], the last option of the first group missing, and pair terms [G, k, G, k], some excluded."""
    own_Gk = rng.standard_normal((groups, width))
    pair_XX = rng.standard_normal((groups * width, groups * width))
    pair_XX[rng.random(pair_XX.shape) < 0.05] = np.inf
    pair_XX = pair_XX + pair_XX.T
    own_Gk[0, -1] = np.inf
    pair_XX[width - 1] = pair_XX[:, width - 1] = np.inf
    pair_GkGk = pair_XX.reshape(groups, width, groups, width)
    pair_GkGk[np.arange(groups), :, np.arange(groups), :] = 0.0
    return own_Gk, pair_GkGk


def total(own_Gk: np.ndarray, pair_GkGk: np.ndarray, choice: tuple[int, ...]) -> float:
    own = sum(own_Gk[g, a] for g, a in enumerate(choice))
    places = itertools.combinations(enumerate(choice), 2)
    return float(own + sum(pair_GkGk[g, a, h, b] for (g, a), (h, b) in places))


@pytest.mark.parametrize("seed", range(6))
def test_messages_keep_every_sum_and_raise_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups, width = int(rng.integers(1, 5)), int(rng.integers(2, 4))
    own_Gk, pair_GkGk = random_terms(rng, groups, width)
    apart = own_Gk.min(axis=1).sum() + 0.5 * pair_GkGk.min(axis=(1, 3)).sum()
    gain, new_own_Gk, new_pair = tightened(own_Gk, np.ascontiguousarray(pair_GkGk.transpose(0, 3, 1, 2)))
    new_pair_GkGk = new_pair.transpose(0, 2, 3, 1)
    sums = {c: total(own_Gk, pair_GkGk, c) for c in itertools.product(range(width), repeat=groups)}
    assert apart - 1e-9 <= gain <= min(sums.values())
    assert (new_own_Gk >= 0).all() and (new_pair_GkGk >= 0).all()
    for choice, value in sums.items():
        assert gain + total(new_own_Gk, new_pair_GkGk, choice) == pytest.approx(value, abs=1e-9)


def test_a_chain_of_groups_is_solved_exactly() -> None:
    rng = np.random.default_rng(3)
    own_Gk, pair_GkGk = rng.standard_normal((4, 3)), np.zeros((4, 3, 4, 3))
    for g in range(3):
        pair_GkGk[g, :, g + 1, :] = 2.0 * rng.standard_normal((3, 3))
        pair_GkGk[g + 1, :, g, :] = pair_GkGk[g, :, g + 1, :].T
    gain, _, _ = tightened(own_Gk, np.ascontiguousarray(pair_GkGk.transpose(0, 3, 1, 2)))
    least = min(total(own_Gk, pair_GkGk, choice) for choice in itertools.product(range(3), repeat=4))
    assert least - 0.3 < gain <= least


def test_groups_without_an_option_leave_no_choice() -> None:
    gain, _, _ = tightened(np.array([[np.inf, np.inf], [0.0, 1.0]]), np.zeros((2, 2, 2, 2)))
    assert gain == np.inf
