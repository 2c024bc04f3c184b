"""Random output projections: unbiased, independent of how the work is split, lean for large vocabularies."""

import pytest
import torch

from hpcmpq.sensitivity.fisher import random_signs
from hpcmpq.sensitivity.probes import DEFAULT_PROBES, make_probes, num_probes
from hpcmpq.sensitivity.sampled_positions import draw_positions
from tests.allocations import peak_bytes

pytestmark = pytest.mark.slow


def projected(phi_NTV, count, seed, first_sample=0):
    return make_probes(count, phi_NTV, seed=seed, first_sample=first_sample)(phi_NTV)


def test_exact_up_to_a_size_and_as_configured():
    assert num_probes(None, 1024) is None
    assert num_probes(None, 1025) == DEFAULT_PROBES
    assert num_probes(16, 256) == 16
    phi_NTV = torch.randn(2, 3, 5)
    assert projected(phi_NTV, None, 0) is phi_NTV


@pytest.mark.parametrize("count", [1, 4])
def test_products_are_unbiased_and_their_spread_is_hutchinsons(count):
    torch.manual_seed(0)
    a_V, b_V = torch.randn(2, 40, dtype=torch.float64)
    phi_NTV = torch.stack([a_V, b_V])[:, None].expand(2, 1, 40)
    estimates = []
    for seed in range(4000):
        project = make_probes(count, phi_NTV[:1], seed=seed, first_sample=0)
        pa, pb = project(phi_NTV[:1]), project(phi_NTV[1:])
        estimates.append(float((pa * pb).sum()))
    value = torch.tensor(estimates, dtype=torch.float64)
    exact = float(a_V @ b_V)
    variance = float((a_V @ a_V) * (b_V @ b_V) + exact**2 - 2 * (a_V**2 * b_V**2).sum()) / count
    assert abs(float(value.mean()) - exact) < 5 * (variance / len(value)) ** 0.5
    assert float(value.var()) == pytest.approx(variance, rel=0.15)


def test_signs_within_a_token_and_of_different_probes_samples_and_tokens_are_unrelated():
    one_NTV = torch.eye(64).reshape(1, 64, 1, 64).expand(1, 64, 40, 64)[0]  # sample v picks output v
    sign_VTr = (
        torch.stack(
            [
                make_probes(8, one_NTV[v : v + 1], seed=3, first_sample=5)(one_NTV[v : v + 1])[0]
                for v in range(64)
            ]
        )
        * 8**0.5
    )
    assert set(sign_VTr.unique().round().tolist()) == {-1.0, 1.0}
    columns = sign_VTr.flatten(1)  # [outputs, tokens × probes]
    products = (columns.T @ columns) / 64 - torch.eye(columns.shape[1])
    # The signs of 320 vectors of 64: correlations of size 1/8, none near 1.
    assert products.abs().max() < 0.75
    assert float(products.square().mean().sqrt()) == pytest.approx(1 / 8, rel=0.1)


def test_a_sample_has_the_same_signs_wherever_the_work_is_cut():
    phi_NTV = torch.randn(6, 5, 33)
    whole = projected(phi_NTV, 4, 7)
    parts = [projected(phi_NTV[i : i + 2], 4, 7, first_sample=i) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(make_probes(4, phi_NTV, seed=7, first_sample=0)(torch.stack([phi_NTV] * 2))[1], whole)


@pytest.mark.parametrize("seed", [-1, -(2**63), 20_251_130_123_000, 2**63 - 1])
def test_every_seed_that_a_config_takes_draws_signs_and_positions(seed: int):
    like_NTV = torch.ones(2, 6, 9)
    projected(like_NTV, 4, seed)
    signs = [random_signs(like_NTV, number, 5, row=4098) for number in (seed, 12_345)]
    assert not torch.equal(*signs)
    drawn = draw_positions(torch.ones(2, 6), 3, seed=seed, first_sample=5)
    assert len(drawn[0]) == len(drawn[2]) > 0


def test_a_large_vocabulary_takes_little_memory():
    phi_NTV = torch.randn(1, 32, 100_000)
    project, made = peak_bytes(lambda: make_probes(16, phi_NTV, seed=0, first_sample=0))
    _, used = peak_bytes(lambda: project(phi_NTV))
    dense = 16 * phi_NTV.nbytes
    assert made < 1.5 * phi_NTV.nbytes + 2 * 16 * 101_000 * 4
    assert used - phi_NTV.nbytes < dense / 8
