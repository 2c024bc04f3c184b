"""Known answers: scales, codes and values worked out by hand."""

import pytest
import torch

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantizers import choose_qparams, encode, fake_quantize

ABSMAX = Quantizer(group_size=4, range="absmax")


def test_symmetric_absmax_scale_is_two_absmax_over_the_number_of_steps():
    # int4: 15 steps between the outermost rounding boundaries ±7.5: scale = 2 · 7.5 / 15 = 1.
    weight = torch.tensor([[7.5, -3.0, 0.4, 1.0, -15.0, 0.0]])
    qparams = choose_qparams(weight, FORMATS["int4"], ABSMAX)
    assert qparams.scale.tolist() == [[1.0, 2.0]]
    assert encode(weight, qparams, FORMATS["int4"], ABSMAX).tolist() == [[7, -3, 0, 1, -8, 0]]
    assert encode(weight, qparams, FORMATS["int4"], ABSMAX).dtype == torch.int8
    assert fake_quantize(weight, FORMATS["int4"], ABSMAX).tolist() == [[7.0, -3.0, 0.0, 1.0, -16.0, 0.0]]


def test_asymmetric_range_includes_zero():
    # [1, 3] widens to [0, 3]: scale 1, zero point 0. [-1, 2]: scale 1, zero point 1. [-3, -1] to [-3, 0].
    quantizer = Quantizer(group_size=2, symmetric=False, range="absmax")
    weight = torch.tensor([[1.0, 3.0, -1.0, 2.0, -3.0, -1.0]])
    qparams = choose_qparams(weight, FORMATS["int2"], quantizer)
    assert qparams.scale.tolist() == [[1.0, 1.0, 1.0]]
    assert qparams.zero_point is not None
    assert qparams.zero_point.tolist() == [[0, 1, 3]]
    codes = encode(weight, qparams, FORMATS["int2"], quantizer)
    assert codes.tolist() == [[1, 3, 0, 3, 0, 2]]
    assert codes.dtype == torch.uint8
    assert torch.equal(fake_quantize(weight, FORMATS["int2"], quantizer), weight)


def test_search_finds_the_clipping_that_loses_least():
    # One outlier among many equal weights: int2 with absmax rounds every 0.1 to 0; clipping keeps them.
    weight = torch.full((1, 64), 0.1)
    weight[0, 0] = 0.4
    absmax = fake_quantize(weight, FORMATS["int2"], Quantizer(range="absmax"))
    searched = fake_quantize(weight, FORMATS["int2"], Quantizer(range="mse"))
    assert (absmax[0, 1:] == 0).all()
    assert ((searched - weight) ** 2).sum() < 0.3 * ((absmax - weight) ** 2).sum()


@pytest.mark.parametrize(("bits", "optimum"), [(2, 0.1188), (3, 0.03744), (4, 0.01154), (5, 0.003495)])
def test_search_nears_the_best_uniform_quantizer_of_a_normal_distribution(bits: int, optimum: float):
    """Source: Max, Quantizing for Minimum Distortion, 1960, table II: a uniform quantizer with 2^b levels.

    Ours has a level at zero, which costs a little with few levels.
    """
    weight = torch.randn(4, 2**15, generator=torch.Generator().manual_seed(0))
    format, quantizer = FORMATS[f"int{bits}"], Quantizer(group_size=None)
    error = (fake_quantize(weight, format, quantizer) - weight).square().mean().item()
    assert 0.98 * optimum < error < {2: 1.4, 3: 1.1}.get(bits, 1.04) * optimum


@pytest.mark.parametrize("range", ["absmax", "mse"])
@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_has_one_scale_per_channel_and_keeps_relative_precision(name: str, range: str):
    weight = (
        torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 5)[:, None]
    )
    quantizer = Quantizer(group_size=64, range=range)
    chosen = choose_qparams(weight, FORMATS[name], quantizer)
    assert chosen.scale.shape == (5, 1)
    # Half a unit in the last place: 2^-4 of e4m3's three mantissa bits, 2^-3 of e5m2's two.
    relative = (fake_quantize(weight, FORMATS[name], quantizer) - weight).abs() / weight.abs()
    large = weight.abs() > weight.abs().amax(1, keepdim=True) * 0.01
    assert relative[large].max() <= {"fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}[name] * 1.01


def test_float_casts_saturate():
    largest = torch.finfo(torch.float32).max
    weight = torch.tensor([[largest, -largest, 1.0]])
    for name in ("bf16", "fp8_e4m3", "fp8_e5m2"):
        quantized = fake_quantize(weight, FORMATS[name], Quantizer())
        assert torch.isfinite(quantized).all(), name
        assert quantized[0, 0] > 0.9 * largest, name


def test_bfloat16_is_the_plain_cast():
    weight = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fake_quantize(weight, FORMATS["bf16"], Quantizer()), weight.bfloat16().float())


def test_more_bits_lose_less():
    weight = torch.randn(16, 200, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        errors = [
            (fake_quantize(weight, FORMATS[f"int{bits}"], Quantizer(symmetric=symmetric)) - weight)
            .square()
            .sum()
            for bits in range(2, 9)
        ]
        assert all(b < 0.4 * a for a, b in zip(errors, errors[1:], strict=False))
