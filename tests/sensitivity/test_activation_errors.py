"""Methods with formats that round activations: derivatives at frozen errors, measurements through real quantizers."""

import numpy as np
import pytest
import torch
from torch.func import grad, jacrev

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.outputs import forward
from hpcmpq.objective import ce_value
from hpcmpq.sensitivity.first_order import noise_factor
from hpcmpq.sensitivity.hessian import measure_by_reversal
from hpcmpq.settings import GroupsConfig
from tests.contracts.test_sensitivity import (
    across,
    empirical,
    generalised_gauss_newton,
    loss_mse,
    measured,
    mpqco,
    second_order,
)
from tests.sensitivity.tiny import losses_at, make_subject, outputs_at

pytestmark = pytest.mark.slow

MIXED = ("int4", "w4a8", "fp8_e4m3", "bf16")
PRODUCTS = GroupsConfig(attention_products=True)


def subject_of(family: str, objective: str, **options):
    groups = PRODUCTS if family in ("llama", "gpt2", "bert") else None
    if family == "fused":  # one of its weights is used past its layer
        groups = GroupsConfig(include=("twice", "head"))
    return make_subject(family, objective, groups=groups, formats=MIXED, **options)


DERIVATIVES = {
    "hessian": second_order,
    "gauss_newton": generalised_gauss_newton,
    "empirical_fisher": empirical,
    "mpqco": mpqco,
    "first_order": loss_mse,
}


def assert_same(found, dense, subject, tolerance=1e-9):
    np.testing.assert_allclose(found[0], dense[0], rtol=0, atol=tolerance * np.abs(dense[0]).max())
    scale = max(np.abs(dense[1]).max(), 1e-300)
    difference_PP = across(found[1], subject) - across(dense[1], subject)
    np.testing.assert_allclose(difference_PP, 0.0, atol=tolerance * scale)


@pytest.mark.parametrize("family", ["mlp", "cnn", "fused"])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_equal_those_of_the_loss_with_frozen_errors(name, family):
    subject, samples = subject_of(family, "ce")
    assert_same(measured(name, subject, samples), DERIVATIVES[name](subject, samples), subject)


@pytest.mark.parametrize("objective", ["kl", "ce"])
@pytest.mark.parametrize(
    "family, name", [("llama", "gauss_newton"), ("gpt2", "gauss_newton"), ("llama", "hessian")]
)
def test_attention_products_have_derivatives_too(family, name, objective):
    subject, samples = subject_of(family, objective, num_samples=2)
    assert sum(bool(group.products) for group in subject.space.groups) == 4
    assert_same(measured(name, subject, samples), DERIVATIVES[name](subject, samples), subject)


def test_the_order_of_groups_does_not_matter_to_the_hessian():
    """Products put last run before layers of earlier groups."""
    subject, samples = subject_of("llama", "ce", num_samples=1)
    order = sorted(range(len(subject.space.groups)), key=lambda g: bool(subject.space.groups[g].products))
    groups = tuple(subject.space.groups[g] for g in order)
    shuffled, _ = make_subject("llama", "ce", groups=PRODUCTS, formats=MIXED, num_samples=1)
    object.__setattr__(shuffled.space, "groups", groups)
    found = measured("hessian", shuffled, samples)
    assert_same(found, second_order(shuffled, samples), shuffled)


def test_reversal_gives_gauss_newton_where_the_loss_has_no_gradient():
    from hpcmpq.calibrate.sums import contents

    subject, samples = subject_of("llama", "kl", num_samples=1)
    groups = range(len(subject.space.groups))
    _, exact, _, _ = contents(measure_by_reversal(subject, samples, groups), True)
    assert_same((exact["linear"], exact["quad"]), generalised_gauss_newton(subject, samples), subject)


def test_fisher_is_right_on_average():
    subject, samples = subject_of("mlp", "kl", num_probes=500, num_samples=1)
    linear_P, _ = measured("fisher", subject, samples)
    _, dense_PP = generalised_gauss_newton(subject, samples)
    np.testing.assert_allclose(linear_P, 0.5 * np.diagonal(dense_PP), rtol=0.2)


@pytest.mark.parametrize("family", ["mlp", "cnn", "llama"])
def test_loss_mse_is_the_square_of_each_samples_first_order_change(family):
    subject, samples = subject_of(family, "ce", num_samples=2)
    losses = losses_at(subject, samples)
    zero_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
    slope_NP = jacrev(losses)(zero_P).numpy()
    linear_P, quad_PP = measured("first_order", subject, samples)
    np.testing.assert_allclose(
        linear_P, (slope_NP**2).sum(0), rtol=1e-8, atol=1e-12 * (slope_NP**2).sum(0).max()
    )
    assert not quad_PP.any()


def inputs_of(model, modules, samples):
    """{module: what it is given} in one forward pass."""
    inputs = {}
    record = lambda module, args: inputs.update({modules[module]: args})  # noqa: E731
    handles = [module.register_forward_pre_hook(record) for module in modules]
    forward(model, samples.inputs)
    for handle in handles:
        handle.remove()
    return inputs


@pytest.mark.parametrize("family", ["mlp", "llama"])
def test_noise_form_adds_the_energies_of_weights_and_inputs(family):
    """s α, by making the weights and inputs themselves the variables, one sample at a time."""
    subject, samples = subject_of(family, "ce", num_samples=2)
    model, space, places = subject.model, subject.space, subject.variants.activations.places
    expected_P = np.zeros(space.num_options)
    for n in range(len(samples)):
        one = samples[n]
        for group, modules in enumerate(places):
            weights = subject.variants.originals(space.groups[group])

            def loss(weights, shifts, one=one, modules=modules):
                def hook(module, args):
                    return tuple(x + e for x, e in zip(args, shifts[modules[module]], strict=True))

                handles = [module.register_forward_pre_hook(hook) for module in modules]
                args = dict(one.inputs)
                first = (args.pop("input"),) if "input" in args else ()
                out = torch.func.functional_call(model, weights, first, args)
                z = out if isinstance(out, torch.Tensor) else out.logits
                for handle in handles:
                    handle.remove()
                return ce_value(z if z.ndim == 3 else z.unsqueeze(1), z, one.targets).sum()

            inputs = inputs_of(model, modules, one)
            shifts = {name: tuple(torch.zeros_like(x) for x in args) for name, args in inputs.items()}
            weight_grads, input_grads = grad(loss, argnums=(0, 1))(weights, shifts)
            own = sum(float((weight_grads[name] * weights[name]).square().sum()) for name in weights)
            pairs = [(g, x) for name in inputs for g, x in zip(input_grads[name], inputs[name], strict=True)]
            given = sum(float((g * x).square().sum()) for g, x in pairs)
            for option in space.options[space.slice_of(group)]:
                chosen = FORMATS[option.format]
                expected_P[option.index] += own * noise_factor(chosen)
                if chosen.activation:
                    expected_P[option.index] += given * noise_factor(FORMATS[chosen.activation])
    linear_P, _ = measured("first_order_noise", subject, samples)
    np.testing.assert_allclose(linear_P, expected_P, rtol=1e-9)


@pytest.mark.parametrize("name", ["first_order", "first_order_noise"])
def test_loss_mse_has_the_same_bits_for_any_split_of_samples(name):
    whole_P, _ = measured(name, *subject_of("mlp", "ce", num_samples=4, per_pass=4))
    subject, samples = subject_of("mlp", "ce", num_samples=4, per_pass=1)
    parts = [measured(name, subject, samples[n : n + 1], first=n)[0] for n in range(4)]
    np.testing.assert_allclose(sum(parts), whole_P, rtol=1e-12)
    again = [measured(name, subject, samples[n : n + 1], first=n)[0] for n in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_a_shard_carries_the_squared_task_loss():
    from hpcmpq.calibrate.sums import contents
    from hpcmpq.sensitivity import find_method

    subject, samples = subject_of("mlp", "kl")
    arrays = contents(find_method("first_order").measure(subject, samples, range(3), 0), True)[1]
    z = forward(subject.model, samples.inputs)
    expected = float(ce_value(z, z, samples.targets).square().sum())
    assert float(arrays["task_loss_square"]) == pytest.approx(expected, rel=1e-12)
    assert (
        "task_loss_square"
        not in contents(find_method("mpqco").measure(subject, samples, range(3), 0), True)[1]
    )


@pytest.mark.parametrize("name", ["secant", "pairwise"])
def test_measured_methods_run_the_real_quantizers(name):
    subject, samples = subject_of("llama", "kl", num_samples=2)
    linear_P, _ = measured(name, subject, samples)
    z0 = forward(subject.model, samples.inputs)
    for option in subject.space.options[::5]:
        with subject.variants.assigned({subject.space.groups[option.group].name: option.format}):
            z = forward(subject.model, samples.inputs)
        increase = float(subject.objective.value(z, z0, samples.targets).sum())
        assert linear_P[option.index] == pytest.approx(increase, rel=1e-9, abs=1e-15)


def test_weights_used_past_their_layer_are_refused():
    subject, samples = make_subject("fused", "ce", formats=MIXED)
    with pytest.raises(UserError, match="past.weight is used in other ways than by calling its layer"):
        measured("first_order", subject, samples)


def test_frozen_errors_make_the_loss_smooth_in_t():
    """The remainder of the second-order expansion along an option falls eightfold per halving."""
    subject, samples = subject_of("mlp", "ce")
    losses = losses_at(subject, samples)
    linear_P, quad_PP = measured("hessian", subject, samples)
    slope_P = jacrev(lambda t: losses(t).sum())(
        torch.zeros(subject.space.num_options, dtype=torch.float64)
    ).numpy()
    zero = float(losses(torch.zeros(subject.space.num_options, dtype=torch.float64)).sum())
    for option in subject.space.options:
        if FORMATS[option.format].activation is None:
            continue
        p, remainders = option.index, []
        for h in (0.5, 0.25, 0.125):
            t_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
            t_P[p] = h
            curved = 2 * (linear_P[p] - slope_P[p])
            rest = float(losses(t_P).sum()) - zero - h * slope_P[p] - 0.5 * h * h * curved
            remainders.append(abs(rest))
        if remainders[-1] > 1e-13:
            assert remainders[0] / remainders[1] == pytest.approx(8, rel=0.5)
            assert remainders[1] / remainders[2] == pytest.approx(8, rel=0.3)


def test_the_mean_square_of_the_loss_is_kept_beside_the_sensitivities(tmp_path):
    from hpcmpq.quadratic import QuadraticModel
    from hpcmpq.store.quadratic_file import read_quadratic, write_quadratic

    zero = np.zeros((2, 2))
    none = np.zeros((0, 2)), np.zeros((0, 2, 2))
    values = (np.array([0.5, 0.0]), zero, np.zeros(2), zero, 3.0, "ce", "first_order", 4, *none)
    for mean_square in (10.0, None):
        model = QuadraticModel(("g", "g"), ("w8a8", "bf16"), *values, task_loss_mean_square=mean_square)
        write_quadratic(tmp_path / "q.h5", model, np.zeros(2), "f")
        assert read_quadratic(tmp_path / "q.h5").task_loss_mean_square == mean_square


def test_outputs_at_one_option_are_those_of_rounding_where_nothing_lies_before():
    """Frozen errors are the real ones for the first layer."""
    subject, samples = subject_of("mlp", "ce")
    outputs = outputs_at(subject, samples)
    for option in subject.space.options[: len(MIXED)]:
        t_P = torch.zeros(subject.space.num_options, dtype=torch.float64)
        t_P[option.index] = 1.0
        frozen = outputs(t_P)
        with subject.variants.assigned({"first": option.format}):
            torch.testing.assert_close(forward(subject.model, samples.inputs), frozen, rtol=1e-12, atol=1e-14)
