"""Properties that every format keeps, over random matrices of any shape."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmpq import quantizers
from hpcmpq.formats import FORMATS, WEIGHT_FORMATS, Quantizer, stored_bits
from hpcmpq.quantizers import choose_qparams, decode, encode, fake_quantize
from hpcmpq.quantizers import ranges as ranges_module
from hpcmpq.quantizers.integer import code_limits

INTEGERS = [name for name in WEIGHT_FORMATS if name.startswith("int")]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Scales of ggml are float16, which no weights of any magnitude fit: test_super_blocks.py has their properties.
PLAIN = [name for name in WEIGHT_FORMATS if FORMATS[name].type != "ggml"]
formats = st.sampled_from(PLAIN).map(FORMATS.__getitem__)
integer_formats = st.sampled_from(INTEGERS).map(FORMATS.__getitem__)
configs = st.builds(
    Quantizer,
    group_size=st.sampled_from([None, 1, 3, 8, 64]),
    symmetric=st.booleans(),
    range=st.sampled_from(["absmax", "mse"]),
)


@st.composite
def matrices(draw: st.DrawFn, dtypes: tuple = tuple(DTYPES)) -> torch.Tensor:
    """Normal, heavy-tailed, one-sided, sparse or all-zero weights of any magnitude that the dtype holds."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 21))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "heavy", "one-sided", "sparse", "zero"]))
    weight = {
        "normal": weight,
        "heavy": weight**3,
        "one-sided": weight.abs() + 1.0,
        "sparse": weight * (torch.rand(rows, columns, generator=generator) < 0.2),
        "zero": weight * 0.0,
    }[kind]
    dtype = draw(st.sampled_from(dtypes))
    largest = 2 if dtype == torch.float16 else 30
    return (weight * 10.0 ** draw(st.integers(-largest, largest))).to(dtype)


@settings(max_examples=150, deadline=None)
@given(matrices(), formats, configs)
def test_result_is_decode_of_encode_and_a_fixed_point(weight, format, quantizer):
    qparams = choose_qparams(weight, format, quantizer)
    quantized = fake_quantize(weight, format, quantizer)
    assert quantized.dtype == weight.dtype
    assert quantized.shape == weight.shape
    assert torch.isfinite(quantized).all()
    decoded = decode(encode(weight, qparams, format, quantizer), qparams, format, quantizer)
    assert torch.equal(decoded.to(weight.dtype), quantized)
    assert torch.equal(fake_quantize(weight, format, quantizer, qparams), quantized)
    assert torch.equal(fake_quantize(quantized, format, quantizer, qparams), quantized)


@given(matrices(), formats.filter(lambda f: f.rows_apart), configs, st.integers(1, 4))
def test_rows_do_not_depend_on_one_another(weight, format, quantizer, chunk):
    whole = fake_quantize(weight, format, quantizer)
    parts = [fake_quantize(rows, format, quantizer) for rows in weight.split(chunk)]
    assert torch.equal(torch.cat(parts), whole)


def test_steps_of_the_search_and_of_the_rounding_change_nothing(monkeypatch):
    weight = torch.randn(150, 140, generator=torch.Generator().manual_seed(0))
    names = ("int3", "nvfp4a16", "fp8_block")
    whole = [fake_quantize(weight, FORMATS[name], Quantizer(group_size=32)) for name in names]
    monkeypatch.setitem(ranges_module.SEARCH_ELEMENTS, "cpu", 1)
    monkeypatch.setattr(quantizers, "STEP_ELEMENTS", 300)
    again = [fake_quantize(weight, FORMATS[name], Quantizer(group_size=32)) for name in names]
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


@given(matrices(), integer_formats, configs)
def test_a_short_last_group_is_quantized_like_a_matrix_of_its_own(weight, format, quantizer):
    size = quantizer.group_size or weight.shape[1]
    parts = [fake_quantize(columns, format, quantizer) for columns in weight.split(size, dim=1)]
    assert torch.equal(torch.cat(parts, dim=1), fake_quantize(weight, format, quantizer))


@settings(max_examples=150, deadline=None)
@given(matrices((torch.float64,)), formats.filter(lambda f: f.scaled), configs)
def test_searched_range_is_never_worse_than_absmax(weight, format, quantizer):
    sizes = {"group_size": quantizer.group_size, "symmetric": quantizer.symmetric}
    errors = {}
    for range in ("absmax", "mse"):
        error = fake_quantize(weight, format, Quantizer(**sizes, range=range)) - weight
        errors[range] = (error / weight.abs().max().clamp(min=1e-300)).square().sum().item()
    assert errors["mse"] <= errors["absmax"] * (1 + 1e-12)


@given(matrices((torch.float64,)), integer_formats, configs)
def test_error_is_at_most_half_a_step_inside_the_range(weight, format, quantizer):
    qparams = choose_qparams(weight, format, quantizer)
    size = min(quantizer.group_size or weight.shape[1], weight.shape[1])
    columns = torch.arange(weight.shape[1]) // size
    scale = qparams.scale[:, columns]
    zero_point = 0 if qparams.zero_point is None else qparams.zero_point[:, columns]
    low, high = code_limits(format, quantizer)
    inside = (weight >= (low - zero_point) * scale) & (weight <= (high - zero_point) * scale)
    error = (fake_quantize(weight, format, quantizer) - weight).abs()
    assert (error <= scale * (0.5 + 1e-9))[inside].all()


@given(matrices(), formats, configs)
def test_scales_are_positive_bfloat16_numbers_and_zero_points_are_codes(weight, format, quantizer):
    qparams = choose_qparams(weight, format, quantizer)
    assert (qparams.scale > 0).all()
    assert torch.equal(qparams.scale.to(torch.bfloat16).to(qparams.scale.dtype), qparams.scale)
    assert qparams.scale.dtype == (torch.float64 if weight.dtype == torch.float64 else torch.float32)
    assert (qparams.zero_point is None) == (quantizer.symmetric or format.type == "float")
    if qparams.zero_point is not None:
        assert qparams.zero_point.dtype == torch.int32
        assert 0 <= int(qparams.zero_point.min()) <= int(qparams.zero_point.max()) < 2**format.num_bits


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "fp8_e4m3"])
@pytest.mark.parametrize("range", ["absmax", "mse"])
def test_scales_for_files_of_float16_are_numbers_of_both(name, range):
    """The same as ever from 2^-17 up; below, where a float16 has less than 8 bits, the nearest that both have."""
    generator = torch.Generator().manual_seed(0)
    size = torch.logspace(-9, 5, 60, dtype=torch.float64)[:, None]
    weight = (torch.randn(60, 32, generator=generator, dtype=torch.float64) * size).float()
    quantizer = Quantizer(group_size=16, range=range)
    plain, both = (
        choose_qparams(weight, FORMATS[name], replace(quantizer, scales=dtype)).scale
        for dtype in ("bfloat16", "float16")
    )
    assert torch.equal(both.to(torch.float16).float(), both)
    assert torch.equal(both.to(torch.bfloat16).float(), both)
    ordinary = (plain >= 2**-17) & (both >= 2**-17) & (plain <= 65280)
    assert ordinary.float().mean() > 0.5 and torch.equal(plain[ordinary], both[ordinary])
    assert not torch.equal(plain, both) and (both > 0).all()


@settings(max_examples=50, deadline=None)
@given(matrices(), formats, configs)
def test_zero_weights_stay_zero(weight, format, quantizer):
    weight[:, 0] = 0
    assert (fake_quantize(weight, format, quantizer)[:, 0] == 0).all()


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 64, 30])
def test_stored_bits_count_what_codes_and_range_take(name: str, symmetric: bool, group_size: int | None):
    format, quantizer = FORMATS[name], Quantizer(group_size, symmetric)
    weight = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    qparams = choose_qparams(weight, format, quantizer)
    codes = encode(weight, qparams, format, quantizer)
    bits = codes.numel() * format.num_bits
    if format.scaled:
        bits += qparams.scale.numel() * (16 if format.scales == "bf16" else 8)
    if qparams.global_scale is not None:
        bits += 32
    if qparams.zero_point is not None:
        bits += qparams.zero_point.numel() * format.num_bits
    assert stored_bits(format, quantizer, 6, 100) == bits
    if format.type == "int":
        low, high = code_limits(format, quantizer)
        assert low <= int(codes.min()) <= int(codes.max()) <= high
        assert high - low == 2**format.num_bits - 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("function", [fake_quantize, choose_qparams])
def test_weights_that_are_not_finite_are_counted(function, value: float):
    weight = torch.ones(3, 4)
    weight[1, :2] = value
    with pytest.raises(ValueError, match="2 of 12 weights are NaN or infinite"):
        function(weight, FORMATS["int4"], Quantizer())
