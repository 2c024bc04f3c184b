"""Losses between a quantized model's outputs z and the original's z0, with the exact factor of their Hessian.

Each is the mean over a sample's positions that count, so per-sample losses of any data average alike; that of a
sample without any is NaN. Shape letters: N samples, T positions, V outputs. Positions whose target is `IGNORED` do
not count; targets that are not [N, T] (one class per sample with T = 1 aside) mark no position.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcmpq.errors import UserError

IGNORED = -100
"""Target of a position that does not count, such as padding; torch's and transformers' convention."""

_STEP_ELEMENTS = 2**21
"""Outputs turned to float64 at once; bounds the memory of large vocabularies, and freed blocks of that size are kept.

See `hpcmpq.models.memory.keep_freed_memory`.
"""

_LARGEST_EXPONENT = 700.0
"""Logit changes beyond this would overflow float64; the loss stays finite there."""


@dataclass(frozen=True)
class Objective:
    """One loss L per sample and its derivatives in z at z0.

    Attributes:
        name: ``kl``, ``ce`` or ``mse``.
        value: (z_NTV, z0_NTV, targets) → L, float64 [N]; differentiable twice in z.
        scaled_displacement: (u_NTV, z0_NTV, targets) → φ = Λ^½ u, [N, T, V] in the dtype of u, where Λ is
            the Hessian of L at z0: Σ_tv φ_p φ_q = u_pᵀ Λ u_q. Leading axes of u broadcast.
        gradient: (z0_NTV, z0_NTV, targets) → dL/dz at z0, [N, T, V] in the dtype of z0.
    """

    name: str
    value: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    scaled_displacement: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor | None], Tensor]


def kl_value(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None = None) -> Tensor:
    """Mean KL(softmax z0 ‖ softmax z) = log(1 + Σ π (expm1 v − v)), v = u − Σ π u, u = z − z0; float64 [N].

    Every term of the sum is positive, so tiny divergences keep their relative precision.

    Example:
        >>> z0 = torch.tensor([[[0.0, 0.0]]])
        >>> kl_value(torch.log(torch.tensor([[[1.0, 3.0]]])), z0)  # ½ log(½ / ¼) + ½ log(½ / ¾)
        tensor([0.1438], dtype=torch.float64)
    """
    return (kl_positions(z_NTV, z0_NTV) * position_weights(z_NTV, targets)).sum(1)


def kl_positions(z_NTV: Tensor, z0_NTV: Tensor) -> Tensor:
    """KL(softmax z0 ‖ softmax z) of every position, float64 [N, T], see `kl_value`."""

    def divergence(z_RV: Tensor, z0_RV: Tensor) -> Tensor:
        pi_RV = torch.softmax(z0_RV.to(torch.float64), -1)
        u_RV = torch.where(pi_RV > 0, z_RV.to(torch.float64) - z0_RV.to(torch.float64), 0.0)
        v_RV = (u_RV - (pi_RV * u_RV).sum(-1, keepdim=True)).clamp(max=_LARGEST_EXPONENT)
        return torch.log1p((pi_RV * (torch.expm1(v_RV) - v_RV)).sum(-1))

    return _by_rows(divergence, z_NTV, z0_NTV)


def ce_value(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None) -> Tensor:
    """Mean −log softmax(z)[target] over the labelled positions, float64 [N]; z0 plays no part.

    Raises:
        ValueError: If targets are missing or are not one per position.
        UserError: If a target is not an output of the model.
    """
    targets_NT = _labels(z_NTV, targets)

    def cross_entropy(z_RV: Tensor, target_R: Tensor) -> Tensor:
        log_pi_RV = torch.log_softmax(z_RV.to(torch.float64), -1)
        return -log_pi_RV.gather(-1, target_R.unsqueeze(-1)).squeeze(-1)

    per_position_NT = _by_rows(cross_entropy, z_NTV, targets_NT.clamp(min=0))
    return (per_position_NT * position_weights(z_NTV, targets)).sum(1)


def mse_value(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None = None) -> Tensor:
    """Mean (z − z0)² over positions and outputs, float64 [N]."""

    def squared_distance(z_RV: Tensor, z0_RV: Tensor) -> Tensor:
        return (z_RV.to(torch.float64) - z0_RV.to(torch.float64)).square().mean(-1)

    return (_by_rows(squared_distance, z_NTV, z0_NTV) * position_weights(z_NTV, targets)).sum(1)


def softmax_displacement(u_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None = None) -> Tensor:
    """φ = √w · s ⊙ (u − Σ π u), s = √π, w the positions' share: Λ = w (diag π − ππᵀ) of both kl and ce.

    Example:
        >>> phi = softmax_displacement(torch.tensor([[[1.0, -1.0]]]), torch.zeros(1, 1, 2))
        >>> round(phi.square().sum().item(), 6)
        1.0
    """
    pi_NTV = torch.softmax(z0_NTV, -1)
    mean_NT1 = (pi_NTV * u_NTV).sum(-1, keepdim=True)
    share_NT1 = position_weights(z0_NTV, targets).unsqueeze(-1).to(u_NTV.dtype)
    return (u_NTV - mean_NT1) * (pi_NTV * share_NT1).sqrt().to(u_NTV.dtype)


def scaled_mse_displacement(u_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None = None) -> Tensor:
    """φ = √(2w / V) u: Λ = 2w / V."""
    share_NT1 = position_weights(z0_NTV, targets).unsqueeze(-1).to(u_NTV.dtype)
    return u_NTV * (2.0 * share_NT1 / z0_NTV.shape[-1]).sqrt()


def no_gradient(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None = None) -> Tensor:
    """Zero: kl and mse have their minimum at the original."""
    return torch.zeros_like(z0_NTV)


def ce_gradient(z_NTV: Tensor, z0_NTV: Tensor, targets: Tensor | None) -> Tensor:
    """The gradient w (π − one-hot target), [N, T, V].

    Raises:
        ValueError: If targets are missing or are not one per position.
    """
    targets_NT1 = _labels(z0_NTV, targets).clamp(min=0).unsqueeze(-1)
    pi_NTV = torch.softmax(z0_NTV, -1)
    share_NT1 = position_weights(z0_NTV, targets).unsqueeze(-1).to(z0_NTV.dtype)
    return share_NT1 * pi_NTV.scatter_add(-1, targets_NT1, -torch.ones_like(pi_NTV[..., :1]))


OBJECTIVES: dict[str, Objective] = {
    "kl": Objective("kl", kl_value, softmax_displacement, no_gradient),
    "ce": Objective("ce", ce_value, softmax_displacement, ce_gradient),
    "mse": Objective("mse", mse_value, scaled_mse_displacement, no_gradient),
}


def counted_positions(z_NTV: Tensor, targets: Tensor | None) -> Tensor:
    """Which positions count, bool [N, T]."""
    num_samples, num_positions = z_NTV.shape[:2]
    if targets is None or targets.numel() != num_samples * num_positions:
        return torch.ones(num_samples, num_positions, dtype=torch.bool, device=z_NTV.device)
    return targets.reshape(num_samples, num_positions) != IGNORED


def position_weights(z_NTV: Tensor, targets: Tensor | None) -> Tensor:
    """Share of every position in its sample's mean, float64 [N, T]: 1 / count, or 0 where ignored.

    NaN in a sample of which no position counts: it has no mean, and 0 would pass for one.
    """
    counted_NT = counted_positions(z_NTV, targets).to(torch.float64)
    return counted_NT / counted_NT.sum(1, keepdim=True)


def _labels(z_NTV: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None or targets.numel() != z_NTV.shape[0] * z_NTV.shape[1]:
        shape = None if targets is None else list(targets.shape)
        raise ValueError(
            f"objective ce needs a target for each of {list(z_NTV.shape[:2])} positions, got {shape}; "
            "use kl or mse"
        )
    check_labels(targets, z_NTV.shape[-1])
    return targets.reshape(z_NTV.shape[:2])


def check_labels(targets: Tensor, num_outputs: int) -> None:
    """Raise `UserError` if a target is neither an output's number nor `IGNORED`."""
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= num_outputs))]
    if wrong.numel():
        raise UserError(
            f"target {int(wrong[0])} is none of the model's {num_outputs} outputs; correct the data's labels"
        )


def _by_rows(function: Callable[[Tensor, Tensor], Tensor], z_NTV: Tensor, other: Tensor) -> Tensor:
    """function(z, other) of flattened positions, a bounded number at a time, as [N, T]."""
    num_samples, num_positions, num_outputs = z_NTV.shape
    step = max(1, _STEP_ELEMENTS // num_outputs)
    pairs = zip(z_NTV.flatten(0, 1).split(step), other.flatten(0, 1).split(step), strict=True)
    return torch.cat([function(z, o) for z, o in pairs]).reshape(num_samples, num_positions)
