"""ggml's super-blocks: bytes that the package gguf decodes to the same weights bit for bit, and a search that pays."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcmpq.export.gguf_super_blocks import to_super_blocks
from hpcmpq.formats import FORMATS, Quantizer, stored_bits
from hpcmpq.quantizers import choose_qparams, decode, encode, fake_quantize
from hpcmpq.quantizers.super_blocks import LAYOUTS
from hpcmpq.targets.llama_cpp import GGUF_TYPES

NAMES = [name for name, format in FORMATS.items() if format.type == "ggml"]
QUANTIZER = Quantizer(group_size=32)


def weight() -> Tensor:
    """Of unequal rows and columns, with zeros, an outlier, and a row all of one sign."""
    weight_MK = (
        torch.randn(12, 512, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 1, 12)[:, None]
    )
    weight_MK[:, 100:130] *= 5
    weight_MK[3], weight_MK[4, :256], weight_MK[5, 7] = 0.0, 0.0, -40.0
    weight_MK[6] = weight_MK[6].abs() + 1
    weight_MK[7, :64] = weight_MK[7, :64].abs() + 0.5
    weight_MK[8, 32:64] = -0.25
    return weight_MK


@pytest.mark.parametrize("name", NAMES)
def test_gguf_decodes_the_bytes_to_the_weights_that_are_measured(name):
    gguf = pytest.importorskip("gguf", reason="needs the extra export")
    format, weight_MK = FORMATS[name], weight()
    qparams = choose_qparams(weight_MK, format, QUANTIZER)
    codes_MK = encode(weight_MK, qparams, format, QUANTIZER)
    blocks = to_super_blocks(codes_MK, qparams, format)
    assert 8 * blocks.size == stored_bits(format, QUANTIZER, *weight_MK.shape)
    read_MK = gguf.dequantize(blocks, getattr(gguf.GGMLQuantizationType, GGUF_TYPES[name]))
    assert np.array_equal(read_MK, decode(codes_MK, qparams, format, QUANTIZER).numpy())
    assert np.isfinite(read_MK).all()


@pytest.mark.parametrize("name", NAMES)
def test_result_is_a_fixed_point_of_rows_apart(name):
    format, weight_MK = FORMATS[name], weight()[:, :300]
    qparams = choose_qparams(weight_MK, format, QUANTIZER)
    rounded_MK = fake_quantize(weight_MK, format, QUANTIZER)
    assert torch.equal(fake_quantize(rounded_MK, format, QUANTIZER, qparams), rounded_MK)
    parts = [fake_quantize(rows, format, QUANTIZER) for rows in weight_MK.split(5)]
    assert torch.equal(torch.cat(parts), rounded_MK)


# Of the best quantizers of a standard normal with one scale (Max, 1960, tables I and II): uniform, and any for iq4_xs.
BEST = {
    "q2_k": 0.1188,
    "q3_k": 0.03744,
    "q4_k": 0.01154,
    "q5_k": 0.003495,
    "q6_k": 0.001041,
    "iq4_xs": 0.009497,
    "q4_1": 0.01154,
    "q5_1": 0.003495,
}


@pytest.mark.parametrize("name", BEST)
def test_scales_of_groups_lose_less_than_the_best_quantizer_with_one_scale(name):
    weight_MK = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    error = (fake_quantize(weight_MK, FORMATS[name], QUANTIZER) - weight_MK).square().mean()
    assert error < 0.65 * BEST[name]


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_an_offset_of_either_sign_keeps_a_grid_that_lies_beside_zero(name):
    low, high = LAYOUTS[name].codes
    codes_MK = torch.arange(64).reshape(2, 32) % (high + 1)
    weight_MK = 0.25 * codes_MK + torch.tensor([[3.0], [-21.0]])
    assert torch.equal(fake_quantize(weight_MK, FORMATS[name], QUANTIZER), weight_MK)
