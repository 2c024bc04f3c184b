"""Error-compensated rounding against its definition, and what it is for: less error of the layer's outputs."""

import pytest
import torch
from torch import Tensor

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantizers import choose_qparams, decode, encode
from hpcmpq.quantizers.codes import QParams
from hpcmpq.quantizers.gptq import compensated_codes, compensated_qparams, compensation


def make(num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """A weight and Σ x xᵀ of inputs that are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(num_columns)
    weight_MK = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    mix_KK = torch.randn(num_columns, num_columns, generator=generator, dtype=torch.float64)
    x_NK = torch.randn(4 * num_columns, num_columns, generator=generator, dtype=torch.float64) @ mix_KK
    x_NK *= torch.linspace(0.3, 2.0, num_columns, dtype=torch.float64)
    return weight_MK, x_NK.T @ x_NK


def by_definition(weight_MK: Tensor, hessian_KK: Tensor, qparams: QParams, format, quantizer) -> Tensor:
    """Optimal brain quantization, a column at a time, each with an inverse of its own."""
    hessian_KK = hessian_KK + quantizer.damping * hessian_KK.diagonal().mean() * torch.eye(
        len(hessian_KK), dtype=torch.float64
    )
    weight_MK = weight_MK.clone()
    order = list(torch.arange(weight_MK.shape[1]))
    if quantizer.act_order:
        order.sort(key=lambda k: -float(hessian_KK[k, k]))
    for place, k in enumerate(order):
        codes_MK = encode(weight_MK, qparams, format, quantizer)
        error_M = weight_MK[:, k] - decode(codes_MK, qparams, format, quantizer)[:, k]
        left = torch.stack(order[place:])
        inverse_FF = torch.linalg.inv(hessian_KK[left][:, left])
        weight_MK[:, left] -= error_M[:, None] * inverse_FF[0] / inverse_FF[0, 0]
    return encode(weight_MK, qparams, format, quantizer)


@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("num_columns", "group_size"), [(24, 8), (20, 8), (16, None), (150, 64)])
def test_codes_are_those_of_the_definition(name, symmetric, act_order, num_columns, group_size):
    quantizer = Quantizer(group_size=group_size, symmetric=symmetric, rounding="gptq", act_order=act_order)
    weight_MK, hessian_KK = make(6, num_columns)
    format = FORMATS[name]
    qparams = choose_qparams(weight_MK, format, quantizer)
    codes_MK = compensated_codes(weight_MK, compensation(hessian_KK, quantizer), qparams, format, quantizer)
    expected_MK = by_definition(weight_MK, hessian_KK, qparams, format, quantizer)
    assert codes_MK.dtype == expected_MK.dtype
    assert torch.equal(codes_MK, expected_MK)


SUPER_BLOCKS = [name for name, format in FORMATS.items() if format.type == "ggml"]


@pytest.mark.parametrize("name", SUPER_BLOCKS)
@pytest.mark.parametrize("act_order", [False, True])
def test_codes_of_super_blocks_are_those_of_the_definition(name, act_order):
    quantizer = Quantizer(group_size=32, rounding="gptq", act_order=act_order)
    format = FORMATS[name]
    weight_MK, hessian_KK = make(3, 64 if format.block == (1, 32) else 256)
    qparams = compensated_qparams(weight_MK, hessian_KK, format, quantizer)
    codes_MK = compensated_codes(weight_MK, compensation(hessian_KK, quantizer), qparams, format, quantizer)
    assert codes_MK.dtype == torch.int8
    assert torch.equal(codes_MK, by_definition(weight_MK, hessian_KK, qparams, format, quantizer))


@pytest.mark.parametrize("name", SUPER_BLOCKS)
def test_error_of_the_outputs_falls_in_super_blocks(name):
    """By ranges that know which inputs are large, and by codes that make up for one another's errors."""
    quantizer = Quantizer(group_size=32, rounding="gptq")
    weight_MK, hessian_KK = make(16, 256)
    format = FORMATS[name]

    def output_error(codes_MK: Tensor, qparams: QParams, hessian_KK: Tensor) -> float:
        error_MK = decode(codes_MK, qparams, format, quantizer) - weight_MK
        return float((error_MK @ hessian_KK * error_MK).sum())

    plain = choose_qparams(weight_MK, format, quantizer)
    weighted = compensated_qparams(weight_MK, hessian_KK, format, quantizer)
    diagonal_KK = hessian_KK.diagonal().square().diag()  # a few inputs much larger than others
    aware = compensated_qparams(weight_MK, diagonal_KK, format, quantizer)
    errors = [
        output_error(encode(weight_MK, qparams, format, quantizer), qparams, diagonal_KK)
        for qparams in (plain, aware)
    ]
    assert errors[1] < errors[0]
    codes_MK = compensated_codes(weight_MK, compensation(hessian_KK, quantizer), weighted, format, quantizer)
    nearest_MK = encode(weight_MK, plain, format, quantizer)
    compensated = output_error(codes_MK, weighted, hessian_KK)
    assert compensated < 0.9 * output_error(nearest_MK, plain, hessian_KK)


@pytest.mark.parametrize("name", ["int2", "int3", "int4", "int8"])
@pytest.mark.parametrize("act_order", [False, True])
def test_error_of_the_outputs_falls(name, act_order):
    quantizer = Quantizer(group_size=32, rounding="gptq", act_order=act_order)
    weight_MK, hessian_KK = make(32, 64)
    format = FORMATS[name]
    qparams = choose_qparams(weight_MK, format, quantizer)

    def output_error(codes_MK: Tensor) -> float:
        error_MK = decode(codes_MK, qparams, format, quantizer) - weight_MK
        return float((error_MK @ hessian_KK * error_MK).sum())

    nearest = output_error(encode(weight_MK, qparams, format, quantizer))
    compensated = output_error(
        compensated_codes(weight_MK, compensation(hessian_KK, quantizer), qparams, format, quantizer)
    )
    assert compensated < 0.85 * nearest


def test_inputs_that_are_never_active_are_rounded_to_nearest():
    quantizer = Quantizer(group_size=8, rounding="gptq")
    weight_MK, _ = make(4, 16)
    qparams = choose_qparams(weight_MK, FORMATS["int4"], quantizer)
    factor = compensation(torch.zeros(16, 16, dtype=torch.float64), quantizer)
    codes_MK = compensated_codes(weight_MK, factor, qparams, FORMATS["int4"], quantizer)
    assert torch.equal(codes_MK, encode(weight_MK, qparams, FORMATS["int4"], quantizer))
