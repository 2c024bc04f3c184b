"""What peers that price every option alone think it costs, on the codes that ship, from a few backward passes.

    prismaquant  ½ mean_n ⟨∇_W v_n·z, ΔW⟩²     n a sample, v = Λ^½ᵀ ε, the KL's Fisher matrix being E[vvᵀ]
    autobit      Σ_qp b_q a_p ΔW_qp²           a, b: mean squares of a layer's inputs, and of ∂CE/∂ its outputs
    hawq         ½ tr(H) / numel · ‖ΔW‖²       tr(H) = E ‖∇_W v_n·z‖², as the KL's Hessian is its Fisher matrix
    modelopt     Σ_tq (∂CE/∂y_tq Δy_tq)²       Δy = ΔW x: ModelOpt's formula, on the codes that ship

Costs of a group's layers add up, and H is zero, as in all of them.

Source: `prismaquant.aura_cost` 0.16.2 (which sums each probe over all samples before it squares: the same mean, more
noise); `onecomp.quantizer.autobit` 1.4.0, after CASA; HAWQ-V2, arXiv 1911.03852, equation 12, whose trace is estimated
by Hutchinson's method; `modelopt.torch.quantization.algorithms._get_auto_quantize_score` 0.47.

Axis letters: N samples, T positions, V outputs of the model; K inputs, M outputs of a layer, O options of a group.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import vjp

from bench.peers.weights import Weights
from hpcmpq.models.data.samples import Samples
from hpcmpq.objective import OBJECTIVES, ce_gradient
from hpcmpq.quantized.variants import Variants
from hpcmpq.sensitivity.fisher import random_signs
from hpcmpq.sensitivity.slopes import weight_gradients
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.sensitivity.taps import find_layers, run_with_taps
from hpcmpq.sensitivity.uses import Layers, Use

PROBES = 2
"""KL-Fisher probes of a sample."""

NAMES = ("prismaquant", "autobit", "hawq", "modelopt")


@dataclass
class Sums:
    """Sums over samples of one weight's statistics, by option where they depend on it.

    Attributes:
        slope_O: ⟨∇_W v·z, ΔW⟩², mean over probes.
        trace: ‖∇_W v·z‖², mean over probes.
        output_O: Σ (∂CE/∂y Δy)².
        input_K: Σ x².
        grad_M: Σ (∂CE/∂y)².
    """

    slope_O: Tensor = field(default_factory=lambda: torch.zeros(()))
    trace: float = 0.0
    output_O: Tensor = field(default_factory=lambda: torch.zeros(()))
    input_K: Tensor = field(default_factory=lambda: torch.zeros(()))
    grad_M: Tensor = field(default_factory=lambda: torch.zeros(()))


def peer_costs(
    variants: Variants, weights: Weights, samples: Samples, per_pass: int, seed: int
) -> dict[str, np.ndarray]:
    """Every cost of NAMES of all options, float64 [P].

    Args:
        variants: The original's options.
        weights: Their codes.
        samples: Calibration samples with labels.
        per_pass: Samples of one forward pass.
        seed: Of the probes.
    """
    kl = OBJECTIVES["kl"]
    subject = Subject(variants.model, variants.space, variants, kl, None, per_pass, seed)
    layers = find_layers(subject, samples)
    if layers.direct:
        raise ValueError(
            f"these costs need weights that layers alone use, {next(iter(layers.direct))} is none"
        )
    sums = {member.parameter: Sums() for group in variants.space.groups for member in group.members}
    for first, batch in layers.passes(subject, samples):
        _add_pass(subject, layers, weights, batch, first, sums)
    costs = {name: np.zeros(variants.space.num_options) for name in NAMES}
    for index, group in enumerate(variants.space.groups):
        options = variants.space.slice_of(index)
        for member in group.members:
            total = sums[member.parameter]
            square_OMK = weights.errors(group, member).double().square()
            by_row_OM = square_OMK @ total.input_K / len(samples)
            energy_O = square_OMK.sum((1, 2))
            own = {
                "prismaquant": total.slope_O / (2 * len(samples)),
                "autobit": by_row_OM @ total.grad_M / len(samples),
                "hawq": energy_O * (total.trace / (2 * len(samples) * member.numel)),
                "modelopt": total.output_O / len(samples),
            }
            for name, cost_O in own.items():
                costs[name][options] += cost_O.numpy()
    return costs


def _add_pass(
    subject: Subject, layers: Layers, weights: Weights, batch: Samples, first: int, sums: dict[str, Sums]
) -> None:
    """Add what one pass of samples tells, the first of which is number `first` of all."""
    with torch.enable_grad():
        z_NTV, inputs, taps, _ = run_with_taps(subject, layers, batch)
    z0_NTV = z_NTV.detach()
    pull = vjp(
        lambda u: subject.objective.scaled_displacement(u, z0_NTV, batch.targets), torch.zeros_like(z0_NTV)
    )[1]
    probes = []
    for probe in range(PROBES):
        (v_NTV,) = pull(random_signs(z0_NTV, subject.seed, first, probe))
        probes.append(torch.autograd.grad(z_NTV, taps, v_NTV, retain_graph=True))
    task = torch.autograd.grad(z_NTV, taps, ce_gradient(z0_NTV, z0_NTV, batch.targets))
    members = {
        member.parameter: (group, member) for group in subject.space.groups for member in group.members
    }
    for index, use in enumerate(layers.uses):
        delta_OMK = weights.errors(*members[use.parameter])
        slopes = [grads[index] for grads in probes]
        _add_use(use, inputs[index], slopes, task[index], delta_OMK, sums[use.parameter], len(batch))


@torch.no_grad()
def _add_use(
    use: Use, x: Tensor, probes: list[Tensor], grad_y: Tensor, delta_OMK: Tensor, total: Sums, count: int
) -> None:
    flat_OW = delta_OMK.flatten(1)
    for probe in probes:
        for grad_NMK in weight_gradients(use, x, probe, count):
            slope_NO = grad_NMK.flatten(1) @ flat_OW.T
            total.slope_O = total.slope_O + slope_NO.double().square().sum(0) / len(probes)
            total.trace += float(grad_NMK.double().square().sum()) / len(probes)
    x_RK, grad_RM = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
    products = [(grad_RM * (x_RK @ delta_MK.T)).double().square().sum() for delta_MK in delta_OMK]
    total.output_O = total.output_O + torch.stack(products)
    total.input_K = total.input_K + x_RK.double().square().sum(0)
    total.grad_M = total.grad_M + grad_RM.double().square().sum(0)
