"""What is found before the head equals what all logits give: features to rounding, losses on average."""

import dataclasses

import numpy as np
import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.linear_head import LinearHead, find_linear_head
from hpcmpq.objective import IGNORED
from hpcmpq.response.whole_model import WholeModel
from hpcmpq.sensitivity import projected_scores, secant
from hpcmpq.sensitivity.projected_scores import make_projected_score
from hpcmpq.sensitivity.sampled_positions import draw_positions, find_head, samples_positions
from hpcmpq.settings import GroupsConfig
from tests.allocations import peak_bytes
from tests.sensitivity.tiny import make_subject

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def few_likely_outputs(monkeypatch):
    """Of eleven outputs three, so that estimates are not exact."""
    monkeypatch.setattr(projected_scores, "LIKELY_OUTPUTS", 3)


def both(family: str, objective: str, positions, dtype=torch.float64, **settings):
    """A subject whose losses come from all logits, the same one before its head, and samples."""
    subject, samples = make_subject(family, objective, num_probes=4, dtype=dtype, **settings)
    head = find_linear_head(subject.model, samples[:1].inputs)
    assert head is not None
    return subject, dataclasses.replace(subject, head=head, loss_positions=positions), samples


class Replayed:
    """An engine that runs all options once, without the head, and gives the same outputs again and again."""

    def __init__(self, subject, samples) -> None:
        with subject.head.left_out(), torch.no_grad():
            options = range(subject.space.num_options)
            self.before_NTD, outputs = WholeModel(subject.model, subject.variants).respond(
                samples.inputs, options
            )
            parts = list(outputs)
        self.members = [p for members, _ in parts for p in members]
        self.before_QNTD = torch.cat([part for _, part in parts])

    def respond(self, inputs, options):
        assert list(options) == self.members
        return self.before_NTD, iter([(self.members, self.before_QNTD)])


def features(subject, samples, first=0):
    parts = list(secant.measure(subject, samples, range(len(subject.space.groups)), first))
    return (
        np.concatenate([part.loss_N for part in parts]),
        np.concatenate([part.increase_NR for part in parts]),
        torch.cat([part.phi_NRF for part in parts]),
    )


@pytest.mark.parametrize("objective", ["kl", "ce"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_features_are_those_of_all_logits_and_so_are_losses_with_all_positions(family, objective):
    exact, projected, samples = both(family, objective, "all", groups=GroupsConfig(include=("*",)))
    loss_N, increase_NR, phi_NRF = features(exact, samples)
    again_N, again_NR, again_NRF = features(projected, samples)
    np.testing.assert_allclose(again_N, loss_N, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(again_NR, increase_NR, rtol=0, atol=1e-10 * np.abs(increase_NR).max())
    torch.testing.assert_close(again_NRF, phi_NRF, rtol=0, atol=1e-10 * float(phi_NRF.abs().max()))


def test_float32_agrees_with_float64():
    _, double, samples = both("llama", "ce", 2)
    _, single, same = both("llama", "ce", 2, torch.float32)
    for found, expected in zip(features(single, same)[1:], features(double, samples)[1:], strict=True):
        found, expected = np.asarray(found, np.float64), np.asarray(expected)
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_sampled_losses_are_right_on_average(objective):
    """Positions are drawn anew and signs too; the mean of many seeds is the exact loss within its standard error."""
    exact, projected, samples = both("llama", objective, 2, num_samples=1, formats=("int2",))
    _, expected_NR, _ = features(exact, samples)
    projected = dataclasses.replace(projected, engine=Replayed(projected, samples))
    drawn = np.stack([features(dataclasses.replace(projected, seed=seed), samples)[1] for seed in range(80)])
    stderr_NR = drawn.std(0, ddof=1) / len(drawn) ** 0.5
    assert (drawn.std(0) > 1e-6 * np.abs(expected_NR).max()).mean() > 0.5
    deviation_NR = (drawn.mean(0) - expected_NR) / np.maximum(stderr_NR, 1e-9 * np.abs(expected_NR).max())
    assert np.abs(deviation_NR).max() < 5
    assert float(np.sqrt((deviation_NR**2).mean())) < 1.6


def test_estimates_are_closer_than_the_loss_of_the_drawn_positions_alone():
    exact, projected, samples = both("llama", "kl", 2, num_samples=3, per_pass=3, formats=("int2",))
    _, expected_NR, _ = features(exact, samples)
    projected = dataclasses.replace(projected, engine=Replayed(projected, samples))
    scale = float(np.sqrt((expected_NR**2).mean()))
    errors, plain = [], []
    for seed in range(12):
        errors.append(features(dataclasses.replace(projected, seed=seed), samples)[1] - expected_NR)
        n_I, t_I, factor_I = draw_positions(share_of(samples), 2, seed=seed, first_sample=0)
        plain.append(losses_at_positions(exact, samples, n_I, t_I, factor_I) - expected_NR)
    rms = [float(np.sqrt((np.stack(e) ** 2).mean())) / scale for e in (errors, plain)]
    assert rms[0] < 0.6 * rms[1]


def share_of(samples) -> torch.Tensor:
    counts_NT = (samples.targets != IGNORED).double()
    return counts_NT / counts_NT.sum(1, keepdim=True)


def losses_at_positions(subject, samples, n_I, t_I, factor_I) -> np.ndarray:
    """Σ factor · KL of the positions drawn, [N, R], by the definition of KL."""
    model = subject.model
    log_pi = model(**samples.inputs).logits.log_softmax(-1)
    rows = []
    for option in subject.space.options:
        group = subject.space.groups[option.group]
        weights = subject.variants.quantized(group, option.format)
        own = torch.func.functional_call(model, weights, (), samples.inputs).logits.log_softmax(-1)
        kl_NT = (log_pi.exp() * (log_pi - own)).sum(-1)
        rows.append(torch.zeros(len(samples)).double().index_add(0, n_I, kl_NT[n_I, t_I] * factor_I))
    return torch.stack(rows, 1).numpy()


def test_units_of_some_samples_or_groups_give_the_same_numbers():
    _, projected, samples = both("llama", "ce", 2, num_samples=4, per_pass=2)
    whole = features(projected, samples)
    parts = [features(projected, samples[a : a + 2], a) for a in (0, 2)]
    for place in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[place] for part in parts]), whole[place])
    assert torch.equal(torch.cat([part[2] for part in parts]), whole[2])
    for group in range(len(projected.space.groups)):
        columns = projected.space.slice_of(group)
        own = list(secant.measure(projected, samples, range(group, group + 1), 0))
        increase_NR = np.concatenate([part.increase_NR for part in own])
        np.testing.assert_allclose(increase_NR, whole[1][:, columns], rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(torch.cat([part.phi_NRF for part in own]), whole[2][:, columns])


def test_positions_are_drawn_once_each_among_those_that_count_wherever_the_work_is_cut():
    weight_NT = torch.zeros(3, 200, dtype=torch.float64)
    weight_NT[0, :160], weight_NT[1, 50:55], weight_NT[2] = 1 / 160, 1 / 5, 1 / 200
    n_I, t_I, factor_I = draw_positions(weight_NT, None, seed=3, first_sample=10)
    assert torch.bincount(n_I).tolist() == [10, 5, 13]
    assert len(set(zip(n_I.tolist(), t_I.tolist(), strict=True))) == 28
    assert (weight_NT[n_I, t_I] > 0).all()
    total_N = torch.zeros(3, dtype=torch.float64).index_add(0, n_I, factor_I)
    torch.testing.assert_close(total_N, torch.ones(3, dtype=torch.float64))
    alone = draw_positions(weight_NT[2:], None, seed=3, first_sample=12)
    assert torch.equal(alone[1], t_I[n_I == 2])
    other = draw_positions(weight_NT, None, seed=4, first_sample=10)
    assert not torch.equal(other[1], t_I)


def test_no_logits_of_all_options_or_positions_are_held():
    torch.manual_seed(0)
    head = LinearHead(torch.nn.Linear(16, 30_000, bias=False).requires_grad_(False), 1.0)
    before_NTD, delta_QNTD = torch.randn(4, 128, 16), 0.1 * torch.randn(8, 4, 128, 16)
    settings = {"num_probes": 2, "loss_positions": None, "seed": 0, "first_sample": 0}
    (_, score), made = peak_bytes(lambda: make_projected_score(head, "kl", before_NTD, None, **settings))
    _, used = peak_bytes(lambda: score(delta_QNTD))
    z_NTV_bytes = 4 * 4 * 128 * 30_000
    assert made < 1.5 * z_NTV_bytes
    assert used < 0.5 * z_NTV_bytes


def test_who_is_sampled_follows_from_vocabulary_objective_and_key():
    assert not samples_positions(None, 4096, 4, "kl")
    assert samples_positions(None, 4097, 4, "ce")
    assert not samples_positions(None, 4097, 4, "mse")
    assert not samples_positions("all", 50_000, 4, "kl")
    assert samples_positions(16, 2000, 4, "kl")
    for probes, objective in ((None, "kl"), (4, "mse")):
        with pytest.raises(UserError, match="loss_positions"):
            samples_positions(16, 50_000, probes, objective)


def test_a_head_with_a_soft_cap_falls_back_to_all_logits():
    subject, samples = make_subject("llama", "kl", num_probes=4)
    head = find_head(2, 11, 4, "kl", subject.model, samples)
    assert head is not None and head.module is subject.model.lm_head
    subject.model.lm_head.register_forward_hook(lambda module, args, z: 30 * torch.tanh(z / 30))
    assert find_head(2, 11, 4, "kl", subject.model, samples) is None
