"""Every objective against dense derivatives in float64, and against closed forms."""

import numpy as np
import pytest
import torch

from hpcmpq import objective as objective_module
from hpcmpq.errors import UserError
from hpcmpq.objective import IGNORED, OBJECTIVES, kl_value

NUM_SAMPLES, NUM_POSITIONS, NUM_OUTPUTS = 2, 3, 5
SHAPE = (NUM_SAMPLES, NUM_POSITIONS, NUM_OUTPUTS)


def random_z0(seed: int = 0) -> torch.Tensor:
    return 2.0 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_targets(ignored: bool) -> torch.Tensor:
    targets = torch.randint(NUM_OUTPUTS, SHAPE[:2], generator=torch.Generator().manual_seed(3))
    if ignored:
        targets[0, 1] = IGNORED
    return targets


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_factor_and_gradient_equal_dense_derivatives(name: str, ignored: bool):
    objective, z0_NTV, targets_NT = OBJECTIVES[name], random_z0(), random_targets(ignored)

    def loss(z_NTV: torch.Tensor) -> torch.Tensor:
        return objective.value(z_NTV, z0_NTV, targets_NT).sum()

    hess = torch.func.hessian(loss)(z0_NTV).reshape(z0_NTV.numel(), -1)
    u_PNTV = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u_PZ = u_PNTV.flatten(1)
    phi_PZ = torch.stack([objective.scaled_displacement(u, z0_NTV, targets_NT) for u in u_PNTV]).flatten(1)
    torch.testing.assert_close(phi_PZ @ phi_PZ.T, u_PZ @ hess @ u_PZ.T, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        objective.gradient(z0_NTV, z0_NTV, targets_NT), torch.func.grad(loss)(z0_NTV), rtol=1e-12, atol=1e-16
    )
    batched_PZ = objective.scaled_displacement(u_PNTV, z0_NTV, targets_NT).flatten(1)
    torch.testing.assert_close(batched_PZ, phi_PZ, rtol=0, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_can_be_differentiated_forward_over_reverse_under_vmap(name: str):
    objective, z0_NTV, targets_NT = OBJECTIVES[name], random_z0(), random_targets(ignored=True)

    def loss(z_NTV: torch.Tensor) -> torch.Tensor:
        return objective.value(z_NTV, z0_NTV, targets_NT).sum()

    u_PNTV = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hvp_PNTV = torch.func.vmap(lambda u: torch.func.jvp(torch.func.grad(loss), (z0_NTV,), (u,))[1])(u_PNTV)
    hess = torch.func.hessian(loss)(z0_NTV).reshape(z0_NTV.numel(), -1)
    torch.testing.assert_close(hvp_PNTV.flatten(1), u_PNTV.flatten(1) @ hess, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_of_positions_change_nothing(name: str, monkeypatch):
    z0_NTV, targets_NT = random_z0(), random_targets(ignored=True)
    z_NTV = z0_NTV + random_z0(5)
    whole_N = OBJECTIVES[name].value(z_NTV, z0_NTV, targets_NT)
    monkeypatch.setattr(objective_module, "_STEP_ELEMENTS", 2 * NUM_OUTPUTS)
    torch.testing.assert_close(
        OBJECTIVES[name].value(z_NTV, z0_NTV, targets_NT), whole_N, rtol=1e-14, atol=0.0
    )
    assert whole_N.dtype == torch.float64


def test_values_are_means_over_the_positions_that_count():
    z0_NTV, targets_NT = random_z0(), random_targets(ignored=True)
    z_NTV = z0_NTV + random_z0(5)
    log_p = torch.log_softmax(z_NTV, -1)
    log_p0 = torch.log_softmax(z0_NTV, -1)
    counted = [[0, 2], [0, 1, 2]]
    kl = [(log_p0[n, t].exp() * (log_p0[n, t] - log_p[n, t])).sum(-1).mean() for n, t in enumerate(counted)]
    ce = [-log_p[n, t, targets_NT[n, t]].mean() for n, t in enumerate(counted)]
    mse = [((z_NTV - z0_NTV)[n, t] ** 2).mean() for n, t in enumerate(counted)]
    for name, expected in (("kl", kl), ("ce", ce), ("mse", mse)):
        value_N = OBJECTIVES[name].value(z_NTV, z0_NTV, targets_NT)
        torch.testing.assert_close(value_N, torch.stack(expected), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-7])
def test_tiny_divergence_keeps_relative_precision(size: float):
    """Against the definition in the platform's long double (80 bits on x86)."""
    z0 = random_z0().numpy().astype(np.longdouble)
    z = z0 + size * random_z0(7).numpy().astype(np.longdouble)
    z = z.astype(np.float64).astype(np.longdouble)
    z0 = z0.astype(np.float64).astype(np.longdouble)
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is no wider than double here")
    log_p0 = z0 - np.log(np.exp(z0).sum(-1, keepdims=True))
    u = z - z0
    mean = (np.exp(log_p0) * u).sum(-1, keepdims=True)
    expected = np.log1p((np.exp(log_p0) * (np.expm1(u - mean) - (u - mean))).sum(-1)).mean(-1)
    value_N = kl_value(torch.tensor(z.astype(np.float64)), torch.tensor(z0.astype(np.float64)))
    np.testing.assert_allclose(value_N.numpy(), expected.astype(np.float64), rtol=1e-8)
    assert (value_N > 0).all()


def test_divergence_of_a_tiny_tilt_has_a_closed_form():
    # Two outputs at equal odds, one raised by ε: KL = log cosh(ε/2) = ε²/8 − ε⁴/192 + ...
    z0_NTV = torch.zeros(1, 1, 2, dtype=torch.float64)
    for tilt in (1e-1, 1e-3, 1e-5):
        value = kl_value(z0_NTV + torch.tensor([tilt, 0.0], dtype=torch.float64), z0_NTV).item()
        assert value == pytest.approx(tilt**2 / 8 - tilt**4 / 192, rel=1e-6)


def test_divergence_is_zero_at_the_original_and_blind_to_a_constant():
    z0_NTV = random_z0()
    assert kl_value(z0_NTV, z0_NTV).tolist() == [0.0, 0.0]
    assert kl_value(z0_NTV + 3.0, z0_NTV).abs().max() < 1e-14


def test_divergence_stays_finite():
    z0_NTV = torch.tensor([[[0.0, 1.0, -float("inf")]]])  # an output that is masked for good
    z_NTV = torch.tensor([[[2000.0, -2000.0, -float("inf")]]])
    assert torch.isfinite(kl_value(z_NTV, z0_NTV)).all()
    assert kl_value(z_NTV, z0_NTV).item() > 500
    assert kl_value(z0_NTV, z0_NTV).item() == 0.0


def test_one_class_per_sample():
    z0_NTV = random_z0()[:, :1]
    targets_N = torch.tensor([1, 4])
    expected_N = torch.nn.functional.cross_entropy(z0_NTV[:, 0], targets_N, reduction="none")
    torch.testing.assert_close(OBJECTIVES["ce"].value(z0_NTV, z0_NTV, targets_N), expected_N)


def test_targets_of_another_shape_mark_no_position_and_cannot_be_labels():
    z0_NTV, z_NTV = random_z0(), random_z0(5)
    for name in ("kl", "mse"):
        value = OBJECTIVES[name].value
        assert torch.equal(value(z_NTV, z0_NTV, torch.tensor([1, IGNORED])), value(z_NTV, z0_NTV, None))
    for targets in (None, torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="objective ce needs a target for each of"):
            OBJECTIVES["ce"].value(z_NTV, z0_NTV, targets)
        with pytest.raises(ValueError, match="objective ce needs a target for each of"):
            OBJECTIVES["ce"].gradient(z0_NTV, z0_NTV, targets)


@pytest.mark.parametrize("target", [NUM_OUTPUTS, -1])
def test_labels_that_the_model_has_no_output_for(target: int):
    targets_NT = random_targets(ignored=True)
    targets_NT[1, 2] = target
    with pytest.raises(UserError, match=f"target {target} is none of the model's 5 outputs"):
        OBJECTIVES["ce"].value(random_z0(), random_z0(), targets_NT)


def test_low_precision_outputs_give_float64_losses():
    z0_NTV, z_NTV = random_z0().bfloat16(), random_z0(5).bfloat16()
    for objective in OBJECTIVES.values():
        assert objective.value(z_NTV, z0_NTV, random_targets(False)).dtype == torch.float64
        assert objective.scaled_displacement(z_NTV - z0_NTV, z0_NTV, None).dtype == torch.bfloat16


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_sample_of_which_no_position_counts_has_no_loss(name: str):
    z0_NTV, targets_NT = random_z0(), random_targets(ignored=True)
    targets_NT[1] = IGNORED
    value_N = OBJECTIVES[name].value(z0_NTV + 1.0, z0_NTV, targets_NT)
    assert value_N.isnan().tolist() == [False, True]
