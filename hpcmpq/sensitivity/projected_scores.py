"""Features and loss of options from what they do before a linear head: no logits but those of a few positions.

With u = W Δ, Δ [D] the displacement of the head's input at a position, φ's random projection ε · Λ^½ u is one
product a · Δ, a = Wᵀ Λ^½ ε, where a is computed once for all options. The loss increase log(1 + Σ π g(v)) of
`hpcmpq.sensitivity.scores` is estimated from the most likely outputs exactly and from the others' ½ v², which the same
projections give; the mean difference to the exact loss on some positions corrects it.

Shape letters: Q options, N samples, T positions, D inputs and V outputs of the head, r projections, M likely
outputs, I positions whose loss is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcmpq.models.linear_head import LinearHead
from hpcmpq.objective import kl_positions, position_weights
from hpcmpq.sensitivity.probes import make_signs
from hpcmpq.sensitivity.sampled_positions import LossPositions, draw_positions
from hpcmpq.sensitivity.scores import exponential_remainder

LIKELY_OUTPUTS = 64
"""Outputs of a position that the estimate of its loss takes exactly."""

NEGLIGIBLE = 1e-20
"""Probabilities that are taken for zero."""

LOOK_ELEMENTS = 2**22
"""Of ε √π at once: enough positions that reading W for their products does not count."""

STEP_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Logits computed at once: a CPU's cache, a GPU's memory."""

ProjectedScore = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Δ [Q, N, T, D] to (loss increase [Q, N] float64, projections of φ [Q, N, T, r])."""


@dataclass(frozen=True)
class _Positions:
    """What is known of the positions before any option.

    Attributes:
        vector_NTBD: Wᵀ times: π; ε √π, centred, for each of r; the likely outputs, centred; the target, or the
            original's probabilities, centred.
        pi_NTM: Probabilities of the likely outputs, float64.
        signed_NTrM: ε √π of the likely outputs, float64.
        loss_NT: −log π[target], or KL from the original, float64.
    """

    vector_NTBD: Tensor
    pi_NTM: Tensor
    signed_NTrM: Tensor
    loss_NT: Tensor


@torch.no_grad()
def make_projected_score(
    head: LinearHead,
    objective: str,
    before_NTD: Tensor,
    targets: Tensor | None,
    *,
    num_probes: int,
    loss_positions: LossPositions,
    seed: int,
    first_sample: int,
    original_NTD: Tensor | None = None,
) -> tuple[Tensor, ProjectedScore]:
    """The loss [N] float64 of the model that options change, and the score of options.

    Args:
        head: Of the model.
        objective: ``kl`` or ``ce``.
        before_NTD: The model's outputs without the head.
        targets: Of the samples; ``ce`` needs one per position.
        num_probes: Projections r; their signs are those of `hpcmpq.sensitivity.probes`.
        loss_positions: Positions of a sample whose loss is exact, or None for a share.
        seed: Of signs and positions.
        first_sample: Place of the first sample in the calibration set.
        original_NTD: What ``kl`` compares with, without the head, where the model is not the original itself.

    Raises:
        ValueError: If the objective is ``ce`` and there is not one target per position.
    """
    num_samples, num_tokens = before_NTD.shape[:2]
    target_NT = None
    if objective == "ce":
        if targets is None or targets.numel() != num_samples * num_tokens:
            raise ValueError("objective ce needs one target per position; use kl or mse")
        target_NT = targets.reshape(num_samples, num_tokens).clamp(min=0)
    weight_NT = position_weights(before_NTD, targets)
    soft_NTD = original_NTD if objective == "kl" else None
    known = _look(head, before_NTD, target_NT, soft_NTD, num_probes, seed, first_sample)
    n_I, t_I, factor_I = draw_positions(weight_NT, loss_positions, seed=seed, first_sample=first_sample)
    pi_IV = _probabilities(head.logits(before_NTD[n_I, t_I]))
    scale_NT1 = (weight_NT / num_probes).sqrt().unsqueeze(-1)
    rest = slice(1 + num_probes, 1 + num_probes + known.pi_NTM.shape[-1])

    def score(delta_QNTD: Tensor) -> tuple[Tensor, Tensor]:
        product_QNTB = _products(delta_QNTD, known.vector_NTBD)
        projected_QNTr = product_QNTB[..., 1 : 1 + num_probes]
        likely_QNTM = product_QNTB[..., rest].double()
        total_QNT = torch.linalg.vecdot(known.pi_NTM, exponential_remainder(likely_QNTM))
        others_QNTr = projected_QNTr.double() - _products(likely_QNTM, known.signed_NTrM)
        estimate_QNT = torch.log1p(total_QNT + 0.5 * others_QNTr.square().mean(-1))
        exact_QI = _divergence(head, delta_QNTD[:, n_I, t_I], product_QNTB[:, n_I, t_I, 0], pi_IV)
        increase_QN = (estimate_QNT * weight_NT).sum(-1)
        increase_QN.index_add_(1, n_I, (exact_QI - estimate_QNT[:, n_I, t_I]) * factor_I)
        if target_NT is not None or soft_NTD is not None:
            increase_QN -= (product_QNTB[..., -1].double() * weight_NT).sum(-1)
        return increase_QN, projected_QNTr * scale_NT1.to(projected_QNTr.dtype)

    return (known.loss_NT * weight_NT).sum(-1), score


def _look(
    head: LinearHead,
    before_NTD: Tensor,
    target_NT: Tensor | None,
    soft_NTD: Tensor | None,
    num_probes: int,
    seed: int,
    first_sample: int,
) -> _Positions:
    weight_VD = head.weight.to(before_NTD.dtype)
    num_outputs = len(weight_VD)
    sign_NrTV = make_signs(num_probes, num_outputs, before_NTD, seed=seed, first_sample=first_sample)
    count = min(LIKELY_OUTPUTS, num_outputs)
    step = max(1, LOOK_ELEMENTS // (num_probes * num_outputs))
    parts: list[tuple[Tensor, ...]] = []
    for n, before_TD in enumerate(before_NTD):
        for start in range(0, len(before_TD), step):
            rows = slice(start, start + step)
            z_RV = head.logits(before_TD[rows])
            pi_RV = _probabilities(z_RV)
            signed_RrV = sign_NrTV[n, :, rows].transpose(0, 1) * pi_RV.sqrt().unsqueeze(1)
            likely_RM, index_RM = pi_RV.topk(count)
            signed_RrM = signed_RrV.gather(-1, index_RM.unsqueeze(1).expand(-1, num_probes, -1))
            mean_R1D = (pi_RV @ weight_VD).unsqueeze(1)
            projected_RrD = (signed_RrV.flatten(0, 1) @ weight_VD).unflatten(0, signed_RrV.shape[:2])
            projecting_RrD = projected_RrD - signed_RrV.sum(-1, keepdim=True) * mean_R1D
            vectors = [mean_R1D, projecting_RrD, weight_VD[index_RM] - mean_R1D]
            loss_R = torch.zeros(len(z_RV), dtype=torch.float64, device=z_RV.device)
            if target_NT is not None:
                target_R1 = target_NT[n, rows].unsqueeze(-1)
                vectors.append(weight_VD[target_R1] - mean_R1D)
                loss_R = -torch.log_softmax(z_RV.double(), -1).gather(-1, target_R1).squeeze(-1)
            if soft_NTD is not None:
                original_RV = head.logits(soft_NTD[n, rows])
                vectors.append((_probabilities(original_RV) @ weight_VD).unsqueeze(1) - mean_R1D)
                loss_R = kl_positions(z_RV[None], original_RV[None])[0]
            parts.append((torch.cat(vectors, 1), likely_RM.double(), signed_RrM.double(), loss_R))
    shape = before_NTD.shape[:2]
    return _Positions(*(torch.cat(tensors).unflatten(0, shape) for tensors in zip(*parts, strict=True)))


def _probabilities(z: Tensor) -> Tensor:
    """softmax z without probabilities whose products would be denormal: they add nothing and are slow."""
    pi = torch.softmax(z, -1)
    return pi.masked_fill_(pi < NEGLIGIBLE, 0.0)


def _products(x_QNTD: Tensor, y_NTBD: Tensor) -> Tensor:
    """Σ_d x y of every position, [Q, N, T, B]."""
    shape = y_NTBD.shape[:2]
    x_LQD = x_QNTD.flatten(1, 2).transpose(0, 1)
    return torch.bmm(x_LQD, y_NTBD.flatten(0, 1).mT).transpose(0, 1).unflatten(1, shape)


def _divergence(head: LinearHead, delta_QID: Tensor, mean_QI: Tensor, pi_IV: Tensor) -> Tensor:
    """log(1 + Σ π g(v)), v = W Δ − mean, in one pass over the vocabulary: [Q, I] float64."""
    weight_VD = head.weight.to(delta_QID.dtype)
    total_QI = torch.zeros(mean_QI.shape, dtype=torch.float64, device=mean_QI.device)
    step = max(1, _step(delta_QID) // max(1, mean_QI.numel()))
    for start in range(0, len(weight_VD), step):
        outputs = slice(start, start + step)
        v_QIV = (delta_QID @ weight_VD[outputs].T).sub_(mean_QI.unsqueeze(-1))
        g_QIV = exponential_remainder(v_QIV)
        total_QI += torch.linalg.vecdot(pi_IV[:, outputs].to(g_QIV.dtype), g_QIV).double()
    return torch.log1p(total_QI)


def _step(like: Tensor) -> int:
    return STEP_ELEMENTS.get(like.device.type, STEP_ELEMENTS["cuda"])
