"""Every method in `METHODS`: its dense definition in float64 computed another way, and sums over any split."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, hessian, jacrev

from hpcmpq.calibrate.sums import contents
from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.input_rounding import record_maxima
from hpcmpq.sensitivity import METHODS, find_method
from hpcmpq.sensitivity.features import Features
from hpcmpq.sensitivity.hessian_trace import directions
from hpcmpq.sensitivity.subject import Subject
from tests.sensitivity.tiny import FORMATS as FORMATS_OF_TESTS
from tests.sensitivity.tiny import MODELS, Mlp, losses_at, make_subject, outputs_at

pytestmark = pytest.mark.slow

SAMPLED = {"fisher", "trace"}
"""Methods that are right on average over random draws."""

PSD = {"secant", "gauss_newton", "fisher", "empirical_fisher"}
ADDITIVE = {"mpqco", "first_order", "first_order_noise", "trace", "relative_error", "uniform"}
"""Methods without interactions."""

Pair = tuple[np.ndarray, np.ndarray]


def measured(
    name: str, subject: Subject, samples: Samples, groups: range | None = None, first: int = 0
) -> Pair:
    """c and H summed over the samples; only columns of the same or a later group count."""
    every = range(len(subject.space.groups))
    _, arrays, num_samples, _ = contents(
        find_method(name).measure(subject, samples, groups or every, first), True
    )
    assert num_samples == len(samples)
    group_P = subject.space.group_P
    rows = np.isin(group_P, groups or every)
    if arrays["quad"].shape[1] == len(group_P):
        return arrays["linear"], np.where(group_P[rows][:, None] <= group_P[None, :], arrays["quad"], 0.0)
    return arrays["linear"], arrays["quad"]


def across(quad_PP: np.ndarray, subject: Subject) -> np.ndarray:
    """Entries of strictly later groups: all that ever acts."""
    group_P = subject.space.group_P
    return np.where(group_P[:, None] < group_P[None, :], quad_PP, 0.0)


def log_likelihoods(subject: Subject, samples: Samples) -> Callable[[torch.Tensor], torch.Tensor]:
    """t [P] ↦ log p_y of every sample [N]; one label per sample."""
    outputs = outputs_at(subject, samples)
    return lambda t: -torch.nn.functional.cross_entropy(outputs(t)[:, 0], samples.targets, reduction="none")


def second_order(subject: Subject, samples: Samples) -> Pair:
    losses = losses_at(subject, samples)
    zero_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
    hess_PP = hessian(lambda t: losses(t).sum())(zero_P)
    slope_P = grad(lambda t: losses(t).sum())(zero_P)
    return (slope_P + 0.5 * hess_PP.diagonal()).numpy(), hess_PP.numpy()


def generalised_gauss_newton(subject: Subject, samples: Samples) -> Pair:
    outputs, zero_P = (
        outputs_at(subject, samples),
        torch.zeros(subject.space.num_options, dtype=torch.float64),
    )
    z0_NTV = outputs(zero_P)
    jacobian = jacrev(outputs)(zero_P)
    value = lambda z: subject.objective.value(z, z0_NTV, samples.targets).sum()  # noqa: E731
    flat = jacobian.reshape(-1, len(zero_P))
    curvature = hessian(value)(z0_NTV).reshape(len(flat), len(flat))
    quad_PP = flat.T @ curvature @ flat
    slope_P = flat.T @ grad(value)(z0_NTV).reshape(-1)
    return (slope_P + 0.5 * quad_PP.diagonal()).numpy(), quad_PP.numpy()


def finite_displacements(subject: Subject, samples: Samples) -> Pair:
    outputs, losses = outputs_at(subject, samples), losses_at(subject, samples)
    num_options = subject.space.num_options
    unit_PP = torch.eye(num_options, dtype=torch.float64)
    z0_NTV = outputs(torch.zeros(num_options, dtype=torch.float64))
    u_PD = torch.stack([(outputs(t) - z0_NTV).flatten() for t in unit_PP])
    value = lambda z: subject.objective.value(z, z0_NTV, samples.targets).sum()  # noqa: E731
    curvature = hessian(value)(z0_NTV).reshape(u_PD.shape[1], -1)
    loss0 = losses(torch.zeros(num_options, dtype=torch.float64)).sum()
    increase = torch.stack([losses(t).sum() - loss0 for t in unit_PP])
    return increase.numpy(), (u_PD @ curvature @ u_PD.T).numpy()


def measured_pairs(subject: Subject, samples: Samples) -> Pair:
    losses, num_options = losses_at(subject, samples), subject.space.num_options
    unit_PP = torch.eye(num_options, dtype=torch.float64)
    loss0 = losses(torch.zeros(num_options, dtype=torch.float64)).sum()
    single = torch.stack([losses(t).sum() - loss0 for t in unit_PP])
    later_PP = np.triu(np.ones((num_options, num_options)), 1)  # the other half says the same
    pair_PP = np.zeros_like(later_PP)
    for p, q in np.argwhere(later_PP):
        pair_PP[p, q] = losses(unit_PP[p] + unit_PP[q]).sum() - loss0
    single_P = single.numpy()
    return single_P, later_PP * (pair_PP - single_P[:, None] - single_P[None, :])


def empirical(subject: Subject, samples: Samples) -> Pair:
    zero_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
    slope_NP = jacrev(log_likelihoods(subject, samples))(zero_P).numpy()
    return 0.5 * (slope_NP**2).sum(0), slope_NP.T @ slope_NP


def mpqco(subject: Subject, samples: Samples) -> Pair:
    """The published formula, with the probability itself: (⟨∂p_y/∂w, δ⟩ / p_y)² / 2."""
    likelihoods = log_likelihoods(subject, samples)
    zero_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
    slope_NP = jacrev(lambda t: likelihoods(t).exp())(zero_P)
    linear_P = 0.5 * (slope_NP / likelihoods(zero_P).exp()[:, None]).square().sum(0)
    return linear_P.numpy(), np.zeros((len(zero_P), len(zero_P)))


def loss_mse(subject: Subject, samples: Samples) -> Pair:
    linear_P = 2 * empirical(subject, samples)[0]
    return linear_P, np.zeros((len(linear_P), len(linear_P)))


def loss_noise(subject: Subject, samples: Samples) -> Pair:
    """s·α with per-sample gradients in the weights, one sample at a time."""
    model, linear_P = subject.model, np.zeros(subject.space.num_options)
    for n in range(len(samples)):
        one = samples[n]
        for index, group in enumerate(subject.space.groups):
            weights = subject.variants.originals(group)

            def loss(weights, one=one):
                logits = torch.func.functional_call(model, weights, (one.inputs["input"],))
                return torch.nn.functional.cross_entropy(logits, one.targets)

            gradient = grad(loss)(weights)
            energy = sum(float((gradient[name] * weights[name]).square().sum()) for name in weights)
            for option in range(subject.space.slice_of(index).start, subject.space.slice_of(index).stop):
                bits = FORMATS[subject.space.options[option].format].num_bits
                linear_P[option] += energy * 2.0 ** (-2 * (bits - 1)) / 12
    return linear_P, np.zeros((len(linear_P), len(linear_P)))


def trace_energy(subject: Subject, samples: Samples) -> Pair:
    """½ tr(H) / numel ‖δ‖², the trace by the mean of εᵀHε over the method's own random signs ε."""
    linear_P = np.zeros(subject.space.num_options)
    args = (samples.inputs["input"],)
    z0 = subject.model(*args)
    for index, group in enumerate(subject.space.groups):
        (name, weight), *_ = subject.variants.originals(group).items()

        def loss(flat, name=name, shape=weight.shape):
            z = torch.func.functional_call(subject.model, {name: flat.view(shape)}, args)
            return subject.objective.value(z.unsqueeze(1), z0.unsqueeze(1), samples.targets).sum()

        hess_KK = hessian(loss)(weight.detach().flatten())
        signs_rK = directions(subject, index)[name].flatten(1)
        trace = torch.einsum("rk,kl,rl->r", signs_rK, hess_KK, signs_rK).mean()
        energy = subject.variants.errors(index)[name].flatten(1).square().sum(1)
        linear_P[subject.space.slice_of(index)] = (0.5 * float(trace) / weight.numel() * energy).numpy()
    return linear_P, np.zeros((len(linear_P), len(linear_P)))


def weights_alone(price: Callable[[Subject, int, int], float]) -> Callable[[Subject, Samples], Pair]:
    def definition(subject: Subject, samples: Samples) -> Pair:
        options = subject.space.options
        linear_P = len(samples) * np.array([price(subject, o.group, o.index) for o in options])
        return linear_P, np.zeros((len(options), len(options)))

    return definition


def relative_error(subject: Subject, group: int, option: int) -> float:
    (weight,) = subject.variants.originals(subject.space.groups[group]).values()
    (rounded,) = subject.variants.quantized(
        subject.space.groups[group], subject.space.options[option].format
    ).values()
    return float((rounded - weight).norm() ** 2 / weight.norm() ** 2)


def uniform(subject: Subject, group: int, option: int) -> float:
    share = subject.space.groups[group].numel / sum(g.numel for g in subject.space.groups)
    return share * 4.0 ** -FORMATS[subject.space.options[option].format].num_bits


DENSE: dict[str, Callable[[Subject, Samples], Pair]] = {
    "secant": finite_displacements,
    "hessian": second_order,
    "gauss_newton": generalised_gauss_newton,
    "fisher": lambda subject, samples: (
        0.5 * np.diagonal(generalised_gauss_newton(subject, samples)[1]),
        generalised_gauss_newton(subject, samples)[1],
    ),
    "empirical_fisher": empirical,
    "mpqco": mpqco,
    "first_order": loss_mse,
    "first_order_noise": loss_noise,
    "pairwise": measured_pairs,
    "trace": trace_energy,
    "relative_error": weights_alone(relative_error),
    "uniform": weights_alone(uniform),
}


def test_every_method_has_a_definition():
    assert set(DENSE) == set(METHODS)


@pytest.mark.parametrize("family", ["mlp", "cnn", "past", "routed"])
@pytest.mark.parametrize("objective", ["kl", "ce", "mse"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "fisher"])
def test_equals_its_dense_definition(name: str, objective: str, family: str):
    subject, samples = make_subject(family, objective)
    linear_P, quad_PP = measured(name, subject, samples)
    dense_P, dense_PP = DENSE[name](subject, samples)
    np.testing.assert_allclose(linear_P, dense_P, rtol=0, atol=1e-10 * np.abs(dense_P).max())
    scale = max(np.abs(dense_PP).max(), 1e-300)
    np.testing.assert_allclose(
        across(quad_PP, subject), across(dense_PP, subject), rtol=0, atol=1e-10 * scale
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "fused"])
@pytest.mark.parametrize("name", ["secant", "gauss_newton", "pairwise"])
def test_transformers_and_shared_weights_equal_the_dense_definition(name: str, family: str):
    formats = ("int2", "int8") if name == "pairwise" else FORMATS_OF_TESTS  # one forward pass a pair
    subject, samples = make_subject(family, "kl", num_samples=2, formats=formats)
    linear_P, quad_PP = measured(name, subject, samples)
    dense_P, dense_PP = DENSE[name](subject, samples)
    np.testing.assert_allclose(linear_P, dense_P, rtol=0, atol=1e-9 * np.abs(dense_P).max())
    scale = np.abs(dense_PP).max()
    np.testing.assert_allclose(across(quad_PP, subject), across(dense_PP, subject), rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("family", ["mlp", "fused", "llama"])
@pytest.mark.parametrize("objective", ["kl", "mse"])
def test_fisher_is_right_on_average(family: str, objective: str):
    """K cotangents: a relative deviation of about 1/√K of each product's own scale."""
    probes = 1000 if family == "mlp" else 250
    subject, samples = make_subject(family, objective, num_probes=probes, num_samples=1)
    linear_P, quad_PP = measured("fisher", subject, samples)
    dense_P, dense_PP = DENSE["fisher"](subject, samples)
    scale_P = np.sqrt(2 * dense_P)
    error_PP = (across(quad_PP, subject) - across(dense_PP, subject)) / np.outer(scale_P, scale_P)
    assert np.abs(error_PP).max() < 6 / np.sqrt(probes)
    assert np.sqrt((error_PP**2).mean()) < 1.6 / np.sqrt(probes)
    np.testing.assert_allclose(linear_P, dense_P, rtol=6 / np.sqrt(probes))


class Undifferentiable(Mlp):
    """Records no graph."""

    @torch.no_grad()
    def forward(self, input):
        return super().forward(input)


class ByKeyword(Mlp):
    """Hooks of its first layer are given no positional argument."""

    def forward(self, input):
        return self.last(torch.tanh(self.first(input=input)) * self.gate(input))


@pytest.mark.parametrize(
    "name", ["fisher", "hessian", "gauss_newton", "first_order", "empirical_fisher", "trace"]
)
def test_models_that_cannot_be_differentiated_are_told(name: str, monkeypatch):
    monkeypatch.setitem(MODELS, "mlp", Undifferentiable)
    subject, samples = make_subject("mlp", "ce", num_samples=2)
    with pytest.raises(UserError, match="cannot be differentiated .*; take sensitivity: secant"):
        measured(name, subject, samples)


def test_layers_that_are_called_with_keywords_are_told(monkeypatch):
    monkeypatch.setitem(MODELS, "mlp", ByKeyword)
    subject, samples = make_subject("mlp", "ce", num_samples=2)
    with pytest.raises(
        UserError, match=r"^\S+ is called with keywords only, .*; add it to groups.exclude, or call"
    ):
        measured("fisher", subject, samples)
    layers = {"first": subject.model.first}
    with pytest.raises(UserError, match="is called with keywords only"):
        record_maxima(subject.model, layers, [samples.inputs])


def test_signs_of_the_trace_are_independent():
    """So E[εᵀHε] = tr H for every H: over 3,000 draws, no mean of one or of two multiplied is off by 5.5 deviations."""
    subject, _ = make_subject("mlp", "kl", num_probes=3000)
    signs_rK = torch.cat([signs.flatten(1) for g in range(3) for signs in directions(subject, g).values()], 1)
    assert set(signs_rK.unique().tolist()) == {-1.0, 1.0}
    ones_rK = torch.cat([torch.ones(3000, 1, dtype=signs_rK.dtype), signs_rK], 1)
    means_KK = ones_rK.T @ ones_rK / 3000
    assert (means_KK - torch.eye(len(means_KK), dtype=means_KK.dtype)).abs().max() < 5.5 / 3000**0.5


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), max_size=3, unique=True), per_pass=st.integers(1, 3))
def test_sums_add_over_any_split_of_samples(name: str, cuts: list[int], per_pass: int):
    subject, samples = make_subject("mlp", "ce", num_samples=5, per_pass=per_pass, num_probes=2)
    whole = measured(name, *make_subject("mlp", "ce", num_samples=5, per_pass=4, num_probes=2))
    edges = [0, *sorted(cuts), 5]
    parts = [measured(name, subject, samples[a:b], first=a) for a, b in zip(edges, edges[1:], strict=False)]
    for index in (0, 1):
        total = sum(part[index] for part in parts)
        np.testing.assert_allclose(total, whole[index], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["mlp", "fused"])
def test_groups_may_be_split(name: str, family: str):
    subject, samples = make_subject(family, "ce", num_samples=2)
    whole_P, whole_PP = measured(name, subject, samples)
    for group in range(len(subject.space.groups)):
        part_R, part_RP = measured(name, subject, samples, range(group, group + 1))
        rows = subject.space.slice_of(group)
        np.testing.assert_allclose(part_R, whole_P[rows], rtol=1e-9, atol=1e-13)
        if part_RP.shape[1] == len(whole_P):
            np.testing.assert_allclose(part_RP, whole_PP[rows], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", sorted(PSD))
def test_columns_of_separate_groups_multiply_to_the_whole(name: str):
    subject, samples = make_subject("mlp", "kl", num_samples=2)
    measure = find_method(name).measure
    whole = next(iter(measure(subject, samples, range(3), 0)))
    parts = [next(iter(measure(subject, samples, range(g, g + 1), 0))) for g in range(3)]
    assert isinstance(whole, Features)
    torch.testing.assert_close(torch.cat([part.phi_NRF for part in parts], 1), whole.phi_NRF)


@pytest.mark.parametrize("name", sorted(PSD))
def test_quadratic_is_positive_semidefinite(name: str):
    subject, samples = make_subject("llama", "kl")
    _, arrays, _, _ = contents(
        find_method(name).measure(subject, samples, range(len(subject.space.groups)), 0), True
    )
    eigenvalues = np.linalg.eigvalsh(arrays["quad"])
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()


@pytest.mark.parametrize("name", sorted(ADDITIVE))
def test_additive_methods_have_no_interactions(name: str):
    subject, samples = make_subject("mlp", "ce")
    assert not measured(name, subject, samples)[1].any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_reports_the_loss_of_the_original(name: str, objective: str):
    subject, samples = make_subject("llama", objective, num_probes=1, formats=("int4",))
    _, arrays, _, _ = contents(
        find_method(name).measure(subject, samples, range(len(subject.space.groups)), 0), True
    )
    z0 = outputs_at(subject, samples)(torch.zeros(subject.space.num_options, dtype=torch.float64))
    expected = float(OBJECTIVES[objective].value(z0, z0, samples.targets).sum())
    assert float(arrays["loss"]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_float32_agrees_with_float64(name: str):
    options = {"num_probes": 2 if name in SAMPLED else None, "per_pass": 3, "formats": ("int2", "int8")}
    double, single = (
        make_subject("llama", "ce", dtype=dtype, **options) for dtype in (torch.float64, torch.float32)
    )
    (linear_P, quad_PP), (low_P, low_PP) = measured(name, *double), measured(name, *single)
    np.testing.assert_allclose(low_P, linear_P, atol=2e-3 * np.abs(linear_P).max())
    np.testing.assert_allclose(low_PP, quad_PP, atol=2e-3 * max(np.abs(quad_PP).max(), 1e-300))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "trace"])
def test_standard_errors_come_from_single_samples(name: str):
    subject, samples = make_subject("mlp", "ce", num_samples=4)
    _, arrays, _, num_batches = contents(find_method(name).measure(subject, samples, range(3), 0), True)
    singles = [measured(name, subject, samples[n], first=n) for n in range(4)]
    assert num_batches == 4
    squares_P = sum(linear_P**2 for linear_P, _ in singles)
    np.testing.assert_allclose(arrays["linear_square"], squares_P, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("name", ["empirical_fisher", "mpqco", "first_order", "first_order_noise"])
def test_methods_of_the_task_loss_ask_for_labels(name: str):
    subject, samples = make_subject("mlp", "kl")
    with pytest.raises(UserError, match="no labels"):
        list(find_method(name).measure(subject, Samples(samples.inputs), range(3), 0))


@pytest.mark.parametrize("family", ["cnn", "llama"])
def test_gauss_newton_is_the_hessian_where_the_loss_has_no_gradient(family: str):
    from hpcmpq.sensitivity.hessian import measure_by_reversal

    subject, samples = make_subject(family, "kl")
    groups = range(len(subject.space.groups))
    _, exact, _, _ = contents(measure_by_reversal(subject, samples, groups), True)
    linear_P, quad_PP = measured("gauss_newton", subject, samples)
    np.testing.assert_allclose(linear_P, exact["linear"], atol=1e-10 * np.abs(linear_P).max())
    np.testing.assert_allclose(
        across(quad_PP, subject), across(exact["quad"], subject), atol=1e-10 * quad_PP.max()
    )


def test_probes_estimate_gauss_newton():
    subject, samples = make_subject("llama", "kl", num_probes=400, num_samples=1)
    _, quad_PP = measured("gauss_newton", subject, samples)
    _, dense_PP = DENSE["gauss_newton"](subject, samples)
    scale_P = np.sqrt(np.diagonal(dense_PP))
    error_PP = (across(quad_PP, subject) - across(dense_PP, subject)) / np.outer(scale_P, scale_P)
    assert np.abs(error_PP).max() < 0.15
