"""Costs of peers equal their definitions, computed densely by autograd in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench.peers.costs
from bench.peers.costs import peer_costs
from bench.peers.judge import Judge
from bench.peers.weights import Weights, kept_weights
from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.quantized.variants import Variants
from hpcmpq.settings import GroupsConfig
from hpcmpq.space import SearchSpace
from hpcmpq.store.run_dir import RunDir

pytestmark = pytest.mark.slow

FORMATS = ("int2", "int4")


class Mlp(nn.Module):
    """Two layers that are tied, and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.gate_proj, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, input: Tensor) -> Tensor:
        return self.last(torch.tanh(self.up_proj(input)) * self.gate_proj(input))


@pytest.fixture
def subject(tmp_path: Path) -> tuple[Variants, Weights, Samples]:
    torch.manual_seed(0)
    model = Mlp().double().eval()
    targets = torch.randint(0, 4, (3, 7))
    targets[1, 4:] = IGNORED
    samples = Samples({"input": torch.randn(3, 7, 5, dtype=torch.float64)}, targets, labelled=True)
    tie = GroupsConfig(include=("*",), tie=(("up_proj", "gate_proj"),))
    groups = find_groups(model, tie, samples[:1].inputs)
    variants = Variants(model, SearchSpace(groups, (FORMATS,) * len(groups)), Quantizer(group_size=3))
    return variants, kept_weights(RunDir(tmp_path), variants), samples


def log_probabilities(model: nn.Module, samples: Samples) -> Tensor:
    return torch.log_softmax(model(samples.inputs["input"]), -1)


def divergence_N(log0_NTV: Tensor, log_NTV: Tensor, targets: Tensor) -> Tensor:
    kl_NT = (log0_NTV.exp() * (log0_NTV - log_NTV)).sum(-1)
    counted_NT = (targets != IGNORED).double()
    return (kl_NT * counted_NT).sum(1) / counted_NT.sum(1)


def by_option(variants: Variants, value: Callable[[str, Tensor], Tensor]) -> np.ndarray:
    """Sum over a group's members of value(name, error of the weight), [P]."""
    costs = []
    for group, names in zip(variants.space.groups, variants.space.formats, strict=True):
        for name in names:
            rounded = variants.quantized(group, name)
            originals = variants.originals(group)
            costs.append(sum(float(value(m, rounded[m] - originals[m])) for m in rounded))
    return np.array(costs)


def test_costs_of_the_task_loss_equal_sums_over_inputs_and_output_gradients(subject):
    variants, weights, samples = subject
    model, seen = variants.model, {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen[module] = (args[0].detach(), output)

    handles = [m.register_forward_hook(record) for m in model.children()]
    log_NTV = log_probabilities(model, samples)
    for n, row in enumerate(samples.targets):
        counted = row != IGNORED
        loss = -log_NTV[n, counted, row[counted]].mean()
        loss.backward(retain_graph=True)
    for handle in handles:
        handle.remove()
    statistics = {
        f"{name}.weight": (seen[m][0].reshape(-1, m.in_features), seen[m][1].grad.reshape(-1, m.out_features))
        for name, m in model.named_children()
    }

    def self_cost(name: str, delta_MK: Tensor) -> Tensor:
        x, g = statistics[name]
        return sum(
            g[:, q].square().sum() * x[:, p].square().sum() * delta_MK[q, p] ** 2
            for q in range(g.shape[1])
            for p in range(x.shape[1])
        )

    def output_cost(name: str, delta_MK: Tensor) -> Tensor:
        x, g = statistics[name]
        return (g * (x @ delta_MK.T)).square().sum()

    costs = peer_costs(variants, weights, samples, 2, 0)
    np.testing.assert_allclose(
        costs["autobit"], by_option(variants, self_cost) / len(samples) ** 2, rtol=1e-9
    )
    np.testing.assert_allclose(costs["modelopt"], by_option(variants, output_cost) / len(samples), rtol=1e-9)


def test_costs_of_probes_approach_the_hessian_of_the_divergence(subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.peers.costs, "PROBES", 800)
    variants, weights, samples = subject
    log0_NTV = log_probabilities(variants.model, samples).detach()
    hessians = {}
    for name, weight in variants.model.named_parameters():
        if name.endswith("weight"):

            def loss(w: Tensor, name: str = name) -> Tensor:
                z_NTV = torch.func.functional_call(variants.model, {name: w}, (samples.inputs["input"],))
                return divergence_N(log0_NTV, torch.log_softmax(z_NTV, -1), samples.targets).mean()

            size = weight.numel()
            hessians[name] = torch.autograd.functional.hessian(loss, weight.detach()).reshape(size, size)
    costs = peer_costs(variants, weights, samples, 2, 0)
    exact = by_option(variants, lambda name, d: 0.5 * d.flatten() @ hessians[name] @ d.flatten())
    np.testing.assert_allclose(costs["prismaquant"], exact, rtol=0.15)
    by_trace = by_option(
        variants, lambda name, d: 0.5 * hessians[name].trace() / d.numel() * d.square().sum()
    )
    np.testing.assert_allclose(costs["hawq"], by_trace, rtol=0.05)


def test_the_judge_measures_each_assignment_once_and_leaves_the_model_as_it_was(subject, tmp_path: Path):
    variants, weights, samples = subject
    judge = Judge(weights, samples, tmp_path / "verdicts", per_pass=2)
    assignment = {group.name: "int2" for group in variants.space.groups}
    before = {name: value.clone() for name, value in variants.model.state_dict().items()}
    found = judge.verdict(assignment)
    assert all(torch.equal(before[name], value) for name, value in variants.model.state_dict().items())
    log0_NTV = log_probabilities(variants.model, samples).detach()
    with variants.assigned(assignment):
        log_NTV = log_probabilities(variants.model, samples).detach()
    kl_N = divergence_N(log0_NTV, log_NTV, samples.targets)
    np.testing.assert_allclose(found.kl_N, kl_N.numpy(), rtol=1e-4)
    assert np.isnan(found.ce_NT[1, 4:]).all()
    assert not np.isnan(found.ce_NT[[0, 2]]).any()
    again = Judge(weights, samples[:0], tmp_path / "verdicts")  # could not measure
    np.testing.assert_array_equal(again.verdict(assignment).kl_NT, found.kl_NT)


def test_the_judge_of_variants_rounds_inputs_too(subject, tmp_path: Path):
    model, samples = subject[0].model, subject[2]
    space = subject[0].space
    variants = Variants(model, SearchSpace(space.groups, (("bf16",),) * len(space.groups)), Quantizer())
    found = Judge(variants, samples, tmp_path).verdict({group.name: "bf16" for group in space.groups})

    def cast(value: Tensor) -> Tensor:
        return value.detach().to(torch.bfloat16).double()

    def layer(linear: nn.Linear, x: Tensor) -> Tensor:
        return x @ cast(linear.weight).T + linear.bias.detach()

    def cross_entropy(rounds: Callable[[Tensor], Tensor]) -> Tensor:
        x = rounds(samples.inputs["input"])
        hidden = torch.tanh(layer(model.up_proj, x)) * layer(model.gate_proj, x)
        log_NTV = torch.log_softmax(layer(model.last, rounds(hidden)), -1)
        return -log_NTV.gather(-1, samples.targets.clamp(min=0)[..., None]).squeeze(-1)

    counted_NT = samples.targets != IGNORED
    ce = found.ce_NT[counted_NT]
    np.testing.assert_allclose(ce, cross_entropy(cast)[counted_NT], atol=1e-6)
    assert np.abs(ce - cross_entropy(lambda x: x)[counted_NT].numpy()).max() > 1e-4
