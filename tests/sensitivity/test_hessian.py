"""`hessian` equals a dense float64 Hessian contracted with the errors, for every family, objective and path."""

import numpy as np
import pytest
import torch
from torch.func import grad, hessian

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.sums import contents
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.config import parse_config
from hpcmpq.planning.stage import prepare
from hpcmpq.sensitivity import hessian as method
from hpcmpq.settings import GroupsConfig
from hpcmpq.store.run_dir import RunDir
from tests.models_of_many_kinds import make
from tests.sensitivity.tiny import MODELS, losses_at, make_subject

pytestmark = pytest.mark.slow

FAMILIES = sorted(MODELS)


def dense(subject, samples):
    """c [P] and H [P, P], summed over samples, from the Hessian in the option coordinates."""
    losses = losses_at(subject, samples)
    zero_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
    hess_PP = hessian(lambda t: losses(t).sum())(zero_P)
    slope_P = grad(lambda t: losses(t).sum())(zero_P)
    return (slope_P + 0.5 * hess_PP.diagonal()).numpy(), hess_PP.numpy()


def upper(quad_PP, group_P):
    """Only columns of the same or a later group count."""
    return np.where(group_P[:, None] <= group_P[None, :], quad_PP, 0.0)


def assert_same(parts, subject, expected):
    _, arrays, _, _ = contents(parts, True)
    group_P = subject.space.group_P
    linear_P, quad_PP = expected
    np.testing.assert_allclose(arrays["linear"], linear_P, rtol=0, atol=1e-10 * np.abs(linear_P).max())
    np.testing.assert_allclose(
        upper(arrays["quad"], group_P), upper(quad_PP, group_P), rtol=0, atol=1e-10 * np.abs(quad_PP).max()
    )


@pytest.mark.parametrize("objective", ["kl", "ce", "mse"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_dense_hessian(family, objective):
    subject, samples = make_subject(family, objective)
    groups = range(len(subject.space.groups))
    assert_same(method.measure(subject, samples, groups, 0), subject, dense(subject, samples))


@pytest.mark.parametrize("objective", ["kl", "ce", "mse"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reversal_equals_the_dense_hessian(family, objective):
    subject, samples = make_subject(family, objective)
    groups = range(len(subject.space.groups))
    assert_same(method.measure_by_reversal(subject, samples, groups), subject, dense(subject, samples))


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", GroupsConfig(tie=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "down_proj")))),
        ("gpt2", GroupsConfig(include=("*wte*", "*mlp*"))),
    ],
)
def test_fused_groups_and_weights_tied_to_the_head(family, config):
    subject, samples = make_subject(family, "ce", groups=config)
    groups = range(len(subject.space.groups))
    assert_same(method.measure(subject, samples, groups, 0), subject, dense(subject, samples))


def test_entries_equal_the_contraction_of_a_hessian_in_all_weights():
    subject, samples = make_subject("mlp", "ce")
    names = [member.parameter for group in subject.space.groups for member in group.members]
    shapes = [subject.model.get_parameter(name).shape for name in names]
    flat = torch.cat([subject.model.get_parameter(name).flatten() for name in names])

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        logits = torch.func.functional_call(subject.model, weights, (samples.inputs["input"],))
        return torch.nn.functional.cross_entropy(logits, samples.targets, reduction="sum")

    delta_PW = torch.zeros(subject.space.num_options, len(flat), dtype=torch.float64)
    place = 0
    for group, name in enumerate(names):
        errors = subject.variants.errors(group)[name].flatten(1)
        delta_PW[subject.space.slice_of(group), place : place + errors.shape[1]] = errors
        place += errors.shape[1]
    quad_PP = delta_PW @ hessian(loss)(flat) @ delta_PW.T
    linear_P = delta_PW @ grad(loss)(flat) + 0.5 * quad_PP.diagonal()
    groups = range(len(names))
    assert_same(method.measure(subject, samples, groups, 0), subject, (linear_P.numpy(), quad_PP.numpy()))


def test_products_that_do_not_fit_are_recomputed(monkeypatch):
    monkeypatch.setattr(method, "KEPT_BYTES", 0)
    subject, samples = make_subject("llama", "ce")
    groups = range(len(subject.space.groups))
    assert_same(method.measure(subject, samples, groups, 0), subject, dense(subject, samples))


def test_remainder_is_cubic():
    """Halving all errors divides what the quadratic misses by eight."""
    missed = []
    for scale in (2e-2, 1e-2):
        subject, samples = make_subject("llama", "ce", scale=scale)
        _, arrays, _, _ = contents(
            method.measure(subject, samples, range(len(subject.space.groups)), 0), True
        )
        losses = losses_at(subject, samples)
        choice = [subject.space.slice_of(g).start for g in range(len(subject.space.groups))]
        t_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
        true = -losses(t_P).sum()
        t_P[choice] = 1.0
        true += losses(t_P).sum()
        block = np.triu(arrays["quad"][np.ix_(choice, choice)], 1)
        missed.append(float(true) - arrays["linear"][choice].sum() - block.sum())
    assert missed[0] / missed[1] == pytest.approx(8.0, rel=0.1)


def attending() -> torch.nn.Module:
    return make("attending")[0]


def sequences() -> torch.Tensor:
    return torch.randn(12, 7, 16, generator=torch.Generator().manual_seed(0))


def test_attention_of_torch_runs_on_kernels_that_can_be_differentiated_twice(tmp_path):
    found = []
    for name in ("hessian", "gauss_newton"):
        values = {
            "model": {"factory": "tests.sensitivity.test_hessian:attending", "dtype": "float64"},
            "calibration": {
                "data": "tests.sensitivity.test_hessian:sequences",
                "num_samples": 4,
                "held_out": 2,
            },
            "groups": {"include": ["encoder.layers.0.*"]},
            "formats": ["int3", "int8"],
            "quantizer": {"group_size": 8},
            "sensitivity": {"method": name},
        }
        run = RunDir(tmp_path / name)
        plan = prepare(parse_config(values), run, (".",))
        worker = make_worker(run)
        for unit in plan.units:
            worker(unit)
        found.append(reduce(run).model)
    assert len(found[0].linear_P) == 4 * 2
    np.testing.assert_allclose(found[0].linear_P, found[1].linear_P, rtol=1e-8)  # kl has no gradient there
    np.testing.assert_allclose(found[0].quad_PP, found[1].quad_PP, rtol=1e-6, atol=1e-12)
