"""Expansions around assignments equal losses of whole assignments and products by the definition of the Hessian."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, mse_loss

from hpcmpq.calibrate.neighbourhood import Neighbourhood, around
from hpcmpq.calibrate.reduce import standard_error
from hpcmpq.calibrate.sums import contents
from hpcmpq.models.linear_head import find_linear_head
from hpcmpq.objective import IGNORED
from hpcmpq.sensitivity.secant import measure
from hpcmpq.settings import SensitivityConfig
from tests.sensitivity.tiny import make_subject

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Found:
    """Means over samples and their standard errors."""

    linear_R: np.ndarray
    stderr_linear_R: np.ndarray
    quad_RR: np.ndarray
    stderr_quad_RR: np.ndarray


def expand(subject, samples, assignment, options, engine="auto"):
    """What a shard of all samples holds, as means."""
    settings = SensitivityConfig(engine=engine)
    own = around(subject, Neighbourhood(assignment, tuple(options)), settings, samples[:2].inputs)
    assert own.space.num_options == len(options)
    _, sums, *size = contents(measure(own, samples, range(len(own.space.groups)), 0), all_groups=True)
    return Found(
        sums["linear"] / size[0],
        standard_error(sums["linear"], sums["linear_square"], *size),
        sums["quad"] / size[0],
        standard_error(sums["quad"], sums["quad_square"], *size),
    )


def outputs(subject, samples, assignment):
    with subject.variants.assigned(assignment), torch.no_grad():
        found = subject.model(**samples.inputs)
    found = found if isinstance(found, torch.Tensor) else found.logits
    return found if found.ndim == 3 else found[:, None]


def losses(objective, z_NTV, original_NTV, targets):
    """Per sample, by torch's own losses; positions without a target do not count."""
    targets_NT = targets.reshape(z_NTV.shape[:2])
    values = []
    for z_TV, o_TV, target_T in zip(z_NTV, original_NTV, targets_NT, strict=True):
        z_TV, o_TV, target_T = (x[target_T != IGNORED] for x in (z_TV, o_TV, target_T))
        if objective == "kl":
            log_z, log_o = z_TV.log_softmax(-1), o_TV.log_softmax(-1)
            values.append(kl_div(log_z, log_o, reduction="batchmean", log_target=True))
        elif objective == "ce":
            values.append(cross_entropy(z_TV, target_T))
        else:
            values.append(mse_loss(z_TV, o_TV))
    return torch.stack(values)


def neighbourhood(subject):
    """An assignment with every format, and all options but its own."""
    space = subject.space
    formats = [space.formats[g][g % len(space.formats[g])] for g in range(len(space.groups))]
    assignment = {group.name: name for group, name in zip(space.groups, formats, strict=True)}
    options = [
        p
        for p, option in enumerate(space.options)
        if assignment[space.groups[option.group].name] != option.format
    ]
    return assignment, options


def with_option(subject, assignment, p):
    option = subject.space.options[p]
    return assignment | {subject.space.groups[option.group].name: option.format}


@pytest.mark.parametrize("objective", ["kl", "ce", "mse"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mlp", "cnn"])
def test_an_option_alone_is_measured_exactly(family, objective):
    subject, samples = make_subject(family, objective)
    assignment, options = neighbourhood(subject)
    found = expand(subject, samples, assignment, options)
    original = outputs(subject, samples, {})
    base_N = losses(objective, outputs(subject, samples, assignment), original, samples.targets)
    expected_NR = torch.stack(
        [
            losses(
                objective,
                outputs(subject, samples, with_option(subject, assignment, p)),
                original,
                samples.targets,
            )
            - base_N
            for p in options
        ],
        1,
    ).numpy()
    scale = np.abs(expected_NR).max()
    np.testing.assert_allclose(found.linear_R, expected_NR.mean(0), rtol=0, atol=1e-9 * scale)
    stderr_R = expected_NR.std(0, ddof=1) / len(expected_NR) ** 0.5
    np.testing.assert_allclose(found.stderr_linear_R, stderr_R, rtol=0, atol=1e-7 * scale)
    assert (found.linear_R < 0).any()


@pytest.mark.parametrize("objective", ["kl", "mse"])
def test_cross_terms_are_products_with_the_hessian_at_the_assignment(objective):
    subject, samples = make_subject("llama", objective)
    assignment, options = neighbourhood(subject)
    found = expand(subject, samples, assignment, options)
    original, base = outputs(subject, samples, {}), outputs(subject, samples, assignment)
    moves = [outputs(subject, samples, with_option(subject, assignment, p)) - base for p in options]
    total = torch.zeros(len(options), len(options), dtype=torch.float64)
    for n in range(len(samples)):

        def loss(z_TV, n=n):
            return losses(objective, z_TV[None], original[n : n + 1], samples.targets[n : n + 1])[0]

        hessian = torch.autograd.functional.hessian(loss, base[n])
        u_RF = torch.stack([move[n] for move in moves]).flatten(1)
        total += u_RF @ hessian.reshape(u_RF.shape[1], -1) @ u_RF.T
    expected = (total / len(samples)).numpy()
    np.testing.assert_allclose(found.quad_RR, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_before_a_linear_head_it_is_the_same(objective):
    subject, samples = make_subject("llama", objective, num_probes=4)
    assignment, options = neighbourhood(subject)
    head = find_linear_head(subject.model, samples[:1].inputs)
    projected = dataclasses.replace(subject, head=head, loss_positions="all")
    exact = expand(subject, samples, assignment, options)
    found = expand(projected, samples, assignment, options)
    for name in ("linear_R", "quad_RR", "stderr_linear_R", "stderr_quad_RR"):
        expected = getattr(exact, name)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_options_that_round_activations_are_run_in_the_whole_assignment():
    subject, samples = make_subject("llama", "kl", formats=("w4a8", "int4", "int8"))
    assignment, options = neighbourhood(subject)
    found = expand(subject, samples, assignment, options)
    original = outputs(subject, samples, {})
    base_N = losses("kl", outputs(subject, samples, assignment), original, samples.targets)
    for p, linear in zip(options, found.linear_R, strict=True):
        after_N = losses(
            "kl", outputs(subject, samples, with_option(subject, assignment, p)), original, samples.targets
        )
        assert linear == pytest.approx(float((after_N - base_N).mean()), rel=1e-6, abs=1e-12)


def test_the_original_returns():
    subject, samples = make_subject("llama", "kl")
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    expand(subject, samples, *neighbourhood(subject))
    for name, tensor in subject.model.state_dict().items():
        assert torch.equal(tensor, before[name])
