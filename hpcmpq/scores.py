"""Loss increase and scaled displacement of many options at once, with all that depends on z0 computed once.

Both follow from the displacement u = z − z0. With π = softmax z0 and v = u − Σ π u, a position's

    KL increase = log(1 + Σ π g(v)),   CE increase = KL increase − v[target],   g(v) = exp v − 1 − v,

and φ = √w · √π ⊙ v. Every term of the first sum is positive, so float32 keeps its relative precision as long as
g does; `exponential_remainder` does.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hpcmpq.objective import Objective, position_weights

Score = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Displacements u [K, N, T, V] to (loss increase [K, N] float64, φ [K, N, T, V])."""

_LARGEST_EXPONENT = 700.0
"""As in `hpcmpq.objective`: the loss stays finite beyond."""

_FLOAT32_EXPONENT = 60.0
"""Changes beyond this are computed in float64."""

_SMALL = 0.9
"""Largest |v| that the series is used for."""

_COEFFICIENTS = [1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2]


def make_score(objective: Objective, z0_NTV: Tensor, targets: Tensor | None) -> Score:
    """The score of an objective at an original's outputs.

    Raises:
        ValueError: If the objective is ``ce`` and there is not one target per position.
    """
    return _SCORES[objective.name](z0_NTV, targets)


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
        # Small v need few terms: the first left out changes g by less than a hundredth of a rounding.
        return _series(v, next((n for n in range(3, 8) if size**n * _COEFFICIENTS[-1 - n] < 1e-9), 8))
    return torch.expm1(v).sub_(v) if float(highest) < _FLOAT32_EXPONENT else exponential_remainder(v.double())


def _series(v: Tensor, num_terms: int = 8) -> Tensor:
    series = torch.full_like(v, _COEFFICIENTS[-num_terms])
    for coefficient in _COEFFICIENTS[len(_COEFFICIENTS) - num_terms + 1 :]:
        torch.addcmul(torch.tensor(coefficient, dtype=v.dtype, device=v.device), series, v, out=series)
    return series.mul_(v).mul_(v)


def _score_kl(z0_NTV: Tensor, targets: Tensor | None) -> Score:
    pi_NTV = torch.softmax(z0_NTV, -1)
    weight_NT = position_weights(z0_NTV, targets)
    factor_NTV = (pi_NTV * weight_NT.unsqueeze(-1).to(pi_NTV.dtype)).sqrt()

    def score(u_KNTV: Tensor) -> tuple[Tensor, Tensor]:
        v_KNTV, increase_KNT = _divergence(u_KNTV, pi_NTV)
        return (increase_KNT * weight_NT).sum(-1), v_KNTV * factor_NTV

    return score


def _score_ce(z0_NTV: Tensor, targets: Tensor | None) -> Score:
    if targets is None or targets.numel() != z0_NTV.shape[0] * z0_NTV.shape[1]:
        raise ValueError("objective ce needs one target per position; use kl or mse")
    pi_NTV = torch.softmax(z0_NTV, -1)
    weight_NT = position_weights(z0_NTV, targets)
    factor_NTV = (pi_NTV * weight_NT.unsqueeze(-1).to(pi_NTV.dtype)).sqrt()
    target_1NT1 = targets.reshape(1, *z0_NTV.shape[:2], 1).clamp(min=0)

    def score(u_KNTV: Tensor) -> tuple[Tensor, Tensor]:
        v_KNTV, increase_KNT = _divergence(u_KNTV, pi_NTV)
        rise_KNT = v_KNTV.gather(-1, target_1NT1.expand(len(u_KNTV), -1, -1, -1)).squeeze(-1)
        return ((increase_KNT - rise_KNT) * weight_NT).sum(-1), v_KNTV * factor_NTV

    return score


def _score_mse(z0_NTV: Tensor, targets: Tensor | None) -> Score:
    weight_NT = position_weights(z0_NTV, targets)
    factor_NT1 = (2.0 * weight_NT.unsqueeze(-1) / z0_NTV.shape[-1]).sqrt()

    def score(u_KNTV: Tensor) -> tuple[Tensor, Tensor]:
        distance_KNT = u_KNTV.square().mean(-1, dtype=torch.float64)
        return (distance_KNT * weight_NT).sum(-1), u_KNTV * factor_NT1.to(u_KNTV.dtype)

    return score


def _divergence(u_KNTV: Tensor, pi_NTV: Tensor) -> tuple[Tensor, Tensor]:
    """v, and log(1 + Σ π g(v)) in float64 [K, N, T]."""
    v_KNTV = u_KNTV - torch.linalg.vecdot(pi_NTV, u_KNTV).unsqueeze(-1)
    sums = [torch.linalg.vecdot(pi_NTV.to(g.dtype), g).double() for g in map(exponential_remainder, v_KNTV)]
    return v_KNTV, torch.log1p(torch.stack(sums))


_SCORES = {"kl": _score_kl, "ce": _score_ce, "mse": _score_mse}
