"""Agreement and tail against the definition, token by token in float64."""

import numpy as np
import pytest
import torch

from hpcmpq.evaluate.statistics import summarise_data
from hpcmpq.evaluate.tails import agreements, divergence_counts, quantile
from hpcmpq.objective import IGNORED


def outputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z0_NTV = torch.randn(6, 50, 11, generator=generator)
    z_NTV = z0_NTV + 0.7 * torch.randn(6, 50, 11, generator=generator) * torch.rand(
        6, 50, 1, generator=generator
    )
    targets_NT = torch.randint(11, (6, 50), generator=generator)
    targets_NT[:, ::5] = IGNORED
    return z_NTV, z0_NTV, targets_NT


def divergences(z_NTV: torch.Tensor, z0_NTV: torch.Tensor) -> np.ndarray:
    """Σ p log(p / q) by numpy."""
    p, q = (np.exp(z.numpy().astype(np.float64)) for z in (z0_NTV, z_NTV))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum(-1)


def test_the_tail_is_the_quantile_of_single_tokens_that_count():
    z_NTV, z0_NTV, targets_NT = outputs()
    counts_NB = divergence_counts(z_NTV, z0_NTV, targets_NT)
    counted = (targets_NT != IGNORED).numpy()
    assert counts_NB.sum(1).tolist() == counted.sum(1).tolist()
    for share in (0.5, 0.9, 0.99):
        exact = np.quantile(divergences(z_NTV, z0_NTV)[counted], share, method="inverted_cdf")
        assert quantile(counts_NB.sum(0), share) == pytest.approx(exact, rel=0.03)
    assert quantile(divergence_counts(z0_NTV, z0_NTV, targets_NT).sum(0), 0.99) == 0.0


def test_agreement_counts_equal_likeliest_outputs():
    z_NTV, z0_NTV, targets_NT = outputs()
    same = (z_NTV.numpy().argmax(-1) == z0_NTV.numpy().argmax(-1)) & (targets_NT != IGNORED).numpy()
    assert agreements(z_NTV, z0_NTV, targets_NT).tolist() == same.sum(1).tolist()
    assert 0 < same.sum() < (targets_NT != IGNORED).sum()


def test_the_summary_weighs_tokens_alike():
    z_NTV, z0_NTV, targets_NT = outputs()
    labels_N = (targets_NT != IGNORED).sum(1).numpy()
    one = {
        "kl": np.ones(6),
        "labels": labels_N,
        "correct": np.zeros(6, dtype=int),
        "agreements": np.array([40, 0, 20, 20, 20, 20]),
        "kl_counts": divergence_counts(z_NTV, z0_NTV, targets_NT),
    }
    values = summarise_data({"original": one, "quantized": one, "uniform": one})
    assert values["top1_agreement"]["quantized"] == pytest.approx(120 / 240)
    low, high = values["intervals"]["top1_agreement"]["quantized"]
    assert low < 0.5 < high
    assert values["kl_p99"]["quantized"] > 0
    assert "agreements" not in values["paired"]
