"""Loss increase and scaled displacement of one option after another, with all that depends on z0 computed once.

Both follow from the displacement u = z − z0. With π = softmax z0 and v = u − Σ π u, a position's

    KL increase = log(1 + Σ π g(v)),   CE increase = KL increase − v[target],   g(v) = exp v − 1 − v,

and φ = √w · √π ⊙ v. Every term of the first sum is positive, so float32 keeps its relative precision as long as
g does; `exponential_remainder` does.

Where the displacement starts at a quantized model, whose outputs are z0, and the loss is KL from the original with
probabilities ρ, the increase is that of a soft target: KL increase − Σ ρ v. Λ is the same: it depends on z0 alone.
"""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from hpcmpq.objective import Objective, position_weights


class Score(Protocol):
    """What `make_score` makes."""

    def __call__(self, u_NTV: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(loss increase [N] float64, φ [N, T, V]) of a displacement, which is overwritten; φ goes to `out`."""
        ...


_LARGEST_EXPONENT = 700.0
"""As in `hpcmpq.objective`: the loss stays finite beyond."""

_FLOAT32_EXPONENT = 60.0
"""Changes beyond this are computed in float64."""

_SMALL = 0.9
"""Largest |v| that the series is used for."""

_COEFFICIENTS = [1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2]


def make_score(
    objective: Objective, z0_NTV: Tensor, targets: Tensor | None, original_NTV: Tensor | None = None
) -> Score:
    """The score of an objective at a model's outputs.

    Args:
        objective: The loss.
        z0_NTV: Outputs of the model that options change.
        targets: Of the samples.
        original_NTV: Outputs that ``kl`` and ``mse`` compare with, where the model is not the original itself.

    Raises:
        ValueError: If the objective is ``ce`` and there is not one target per position.
    """
    return _SCORES[objective.name](z0_NTV, targets, original_NTV)


def exponential_remainder(v: Tensor) -> Tensor:
    """g(v) = exp v − 1 − v, also for tiny v, where it is ½ v²: float64 in float64.

    In float32, v all small take a series, good to a few roundings. Where some v is large, small ones' g has an
    error of a rounding of v, which is lost in the sum with the large.

    Example:
        >>> exponential_remainder(torch.tensor([1e-4, 0.5]))
        tensor([5.0002e-09, 1.4872e-01])
    """
    if v.dtype == torch.float64:
        v = v.clamp(max=_LARGEST_EXPONENT)
        return torch.where(v.abs() < 1e-5, 0.5 * v * v, torch.expm1(v) - v)
    if v.device.type != "cpu":
        return torch.where(v.abs() <= _SMALL, _series(v).double(), exponential_remainder(v.double()))
    lowest, highest = v.aminmax()
    size = max(-float(lowest), float(highest))
    if size <= _SMALL:
        # Small v need few terms: the first left out changes g by less than half a rounding.
        return _series(v, next((n for n in range(3, 8) if size**n * _COEFFICIENTS[-1 - n] < 1e-8), 8))
    return torch.expm1(v).sub_(v) if float(highest) < _FLOAT32_EXPONENT else exponential_remainder(v.double())


def _series(v: Tensor, num_terms: int = 8) -> Tensor:
    first, second, *others = _coefficients(v.dtype, v.device)[-num_terms:]
    series = torch.addcmul(second, first, v)
    for coefficient in others:
        torch.addcmul(coefficient, series, v, out=series)
    return series.mul_(v).mul_(v)


@cache
def _coefficients(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(c, dtype=dtype, device=device) for c in _COEFFICIENTS)


def _score_kl(z0_NTV: Tensor, targets: Tensor | None, original_NTV: Tensor | None) -> Score:
    pi_NTV = torch.softmax(z0_NTV, -1)
    weight_NT = position_weights(z0_NTV, targets)
    factor_NTV = (pi_NTV * weight_NT.unsqueeze(-1).to(pi_NTV.dtype)).sqrt()
    pull_NTV = None if original_NTV is None else torch.softmax(original_NTV, -1) - pi_NTV

    def score(u_NTV: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v_NTV, increase_NT = _divergence(u_NTV, pi_NTV)
        if pull_NTV is not None:  # Σ π v = 0
            increase_NT = increase_NT - torch.linalg.vecdot(pull_NTV, v_NTV).double()
        return (increase_NT * weight_NT).sum(-1), torch.mul(v_NTV, factor_NTV, out=out)

    return score


def _score_ce(z0_NTV: Tensor, targets: Tensor | None, original_NTV: Tensor | None) -> Score:
    if targets is None or targets.numel() != z0_NTV.shape[0] * z0_NTV.shape[1]:
        raise ValueError("objective ce needs one target per position; use kl or mse")
    pi_NTV = torch.softmax(z0_NTV, -1)
    weight_NT = position_weights(z0_NTV, targets)
    factor_NTV = (pi_NTV * weight_NT.unsqueeze(-1).to(pi_NTV.dtype)).sqrt()
    target_NT1 = targets.reshape(*z0_NTV.shape[:2], 1).clamp(min=0)

    def score(u_NTV: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v_NTV, increase_NT = _divergence(u_NTV, pi_NTV)
        rise_NT = v_NTV.gather(-1, target_NT1).squeeze(-1)
        return ((increase_NT - rise_NT) * weight_NT).sum(-1), torch.mul(v_NTV, factor_NTV, out=out)

    return score


def _score_mse(z0_NTV: Tensor, targets: Tensor | None, original_NTV: Tensor | None) -> Score:
    drift_NTV = None if original_NTV is None else z0_NTV - original_NTV
    weight_NT = position_weights(z0_NTV, targets)
    factor_NT1 = (2.0 * weight_NT.unsqueeze(-1) / z0_NTV.shape[-1]).sqrt().to(z0_NTV.dtype)

    def score(u_NTV: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        distance_NT = u_NTV.square().mean(-1, dtype=torch.float64)
        if drift_NTV is not None:
            distance_NT += 2.0 * (u_NTV * drift_NTV).mean(-1, dtype=torch.float64)
        return (distance_NT * weight_NT).sum(-1), torch.mul(u_NTV, factor_NT1, out=out)

    return score


def _divergence(u_NTV: Tensor, pi_NTV: Tensor) -> tuple[Tensor, Tensor]:
    """v, in the memory of u, and log(1 + Σ π g(v)) in float64 [N, T]."""
    v_NTV = u_NTV.sub_(torch.linalg.vecdot(pi_NTV, u_NTV).unsqueeze(-1))
    g_NTV = exponential_remainder(v_NTV)
    return v_NTV, torch.log1p(torch.linalg.vecdot(pi_NTV.to(g_NTV.dtype), g_NTV).double())


_SCORES = {"kl": _score_kl, "ce": _score_ce, "mse": _score_mse}
