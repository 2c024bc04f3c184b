"""Rounding towards the original's outputs, against the least-squares problems that define it."""

import pytest
import torch
from torch import Tensor

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantizers import choose_qparams, decode, encode
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import compensated_codes, compensation
from hpcmpq.quantizers.propagation import asymmetry, corrected_weight

FORMAT = FORMATS["int3"]


def make(num_columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, inputs of the original, and those of a model quantized up to it, which are near them."""
    generator = torch.Generator().manual_seed(num_columns)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x_NK = random(5 * num_columns, num_columns) @ random(num_columns, num_columns)
    drift_NK = 0.2 * x_NK.roll(1, 1) + 0.3 * random(*x_NK.shape)
    return random(5, num_columns), x_NK, x_NK + drift_NK


def sums(x_NK: Tensor, quantized_NK: Tensor) -> tuple[Tensor, Tensor]:
    return quantized_NK.T @ quantized_NK, (x_NK - quantized_NK).T @ quantized_NK


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_corrected_weight_solves_the_regression_on_the_originals_outputs(act_order, strength):
    """Least Σ |A x̃ − W x|² + λ |A − W|², gone to by a share `strength` of the way from W."""
    weight_MK, x_NK, quantized_NK = make(12)
    quantizer = Quantizer(rounding="gptq", act_order=act_order)
    hessian_KK, cross_KK = sums(x_NK, quantized_NK)
    ridge = quantizer.damping * hessian_KK.diagonal().mean()
    left = torch.cat([quantized_NK, ridge.sqrt() * torch.eye(12, dtype=torch.float64)])
    right = torch.cat([x_NK @ weight_MK.T, ridge.sqrt() * weight_MK.T])
    best_MK = torch.linalg.lstsq(left, right).solution.T
    found_MK = corrected_weight(weight_MK, cross_KK, compensation(hessian_KK, quantizer), strength)
    torch.testing.assert_close(found_MK, weight_MK + strength * (best_MK - weight_MK), rtol=1e-9, atol=1e-9)
    if strength == 1.0:
        errors = [
            float((quantized_NK @ a.T - x_NK @ weight_MK.T).square().sum()) for a in (found_MK, weight_MK)
        ]
        assert errors[0] < 0.7 * errors[1]


def by_definition(
    weight_MK: Tensor, x_NK: Tensor, quantized_NK: Tensor, qparams: QParams, quantizer: Quantizer, s: float
) -> Tensor:
    """A column at a time, all that is not rounded yet moves to make up for its error and for its drift.

    Least |Δ_F x̃_F − s w_k (x − x̃)_k|² + λ |Δ_F|² over moves Δ_F of the columns F from k on, where that of k itself is
    given by its rounding: solved with a multiplier, as one linear system.
    """
    num_columns = weight_MK.shape[1]
    ridge = quantizer.damping * quantized_NK.square().sum(0).mean()
    order = list(range(num_columns))
    if quantizer.act_order:
        order.sort(key=lambda k: -float(quantized_NK[:, k].square().sum()))
    weight_MK, codes_MK = weight_MK.clone(), torch.zeros_like(weight_MK)
    for place, k in enumerate(order):
        rounded_MK = encode(weight_MK, qparams, FORMAT, quantizer)
        codes_MK[:, k] = rounded_MK[:, k].double()
        move_M = decode(rounded_MK, qparams, FORMAT, quantizer)[:, k] - weight_MK[:, k]
        after = order[place:]
        size = len(after)
        inputs_NF = quantized_NK[:, after]
        system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        system[:size, :size] = inputs_NF.T @ inputs_NF + ridge * torch.eye(size, dtype=torch.float64)
        system[0, size] = system[size, 0] = 1.0
        drift_N = x_NK[:, k] - quantized_NK[:, k]
        # The column itself is rounded: only those after it can make up for its drift.
        wanted_F = inputs_NF.T @ drift_N
        right = torch.cat([s * weight_MK[:, k, None] * wanted_F, move_M[:, None]], 1)
        weight_MK[:, after] += torch.linalg.solve(system, right.T).T[:, :size]
    return codes_MK


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("num_columns", "strength"), [(24, 1.0), (40, 0.25), (70, 0.5)])
def test_asymmetric_codes_are_those_of_the_definition(act_order, num_columns, strength):
    quantizer = Quantizer(group_size=8, rounding="gptq", act_order=act_order)
    weight_MK, x_NK, quantized_NK = make(num_columns)
    hessian_KK, cross_KK = sums(x_NK, quantized_NK)
    qparams = choose_qparams(weight_MK, FORMAT, quantizer)
    factor = compensation(hessian_KK, quantizer)
    codes = {
        s: compensated_codes(
            weight_MK, factor, qparams, FORMAT, quantizer, asymmetry(cross_KK, factor, s)
        ).double()
        for s in (strength, 0.0)
    }
    expected_MK = by_definition(weight_MK, x_NK, quantized_NK, qparams, quantizer, strength)
    assert torch.equal(codes[strength], expected_MK)
    assert not torch.equal(codes[strength], codes[0.0])
    assert torch.equal(codes[0.0], compensated_codes(weight_MK, factor, qparams, FORMAT, quantizer).double())
