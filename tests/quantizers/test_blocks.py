"""fp4 and fp8 in blocks: grids, kinds of scales, and bytes equal to those of compressed-tensors' own packers."""

import pytest
import torch
from torch import Tensor

from hpcmpq.export.compressed_schemes import kind, scheme, stored
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantizers import choose_qparams, decode, encode, fake_quantize

BLOCKS = [name for name, format in FORMATS.items() if format.block is not None and format.type == "float"]
QUANTIZER = Quantizer(group_size=None)


def weight() -> Tensor:
    """Of unequal rows, with a block of zeros and an outlier."""
    weight_MK = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    weight_MK *= torch.logspace(-2, 1, 256)[:, None]
    weight_MK[3, :32], weight_MK[5, 7] = 0.0, 2.0
    return weight_MK


@pytest.mark.parametrize("name", BLOCKS)
def test_bytes_are_those_of_the_reference_packer_which_reads_the_same_weights(name):
    compressors = pytest.importorskip("compressed_tensors.compressors.base")
    from compressed_tensors.quantization import QuantizationScheme

    format, weight_MK = FORMATS[name], weight()
    qparams = choose_qparams(weight_MK, format, QUANTIZER)
    codes_MK = encode(weight_MK, qparams, format, QUANTIZER)
    found = stored("weight", codes_MK, qparams, format, QUANTIZER)
    reference = compressors.BaseCompressor.get_value_from_registry(kind(format))
    plan = QuantizationScheme(targets=["Linear"], **scheme(format, QUANTIZER))
    given = {"weight": weight_MK, "weight_scale": qparams.scale}
    if qparams.global_scale is not None:
        given |= {"weight_scale": qparams.scale / qparams.global_scale}
        given |= {"weight_global_scale": 1 / qparams.global_scale.reshape(1)}
    expected = reference.compress(given, plan)
    if name == "fp8_block":
        found["weight_scale"] = found["weight_scale"].float()  # it leaves scales of such blocks as they come
    for part, tensor in found.items():
        same = expected[part].reshape(tensor.shape)
        assert tensor.dtype == same.dtype, part
        assert torch.equal(tensor.contiguous().view(torch.uint8), same.contiguous().view(torch.uint8)), part
    read_MK = reference.decompress(dict(found), plan)["weight"]
    exact = torch.float32 if name == "fp8_block" else torch.bfloat16
    assert torch.equal(read_MK.float(), decode(codes_MK, qparams, format, QUANTIZER).to(exact).float())


@pytest.mark.parametrize("name", BLOCKS)
def test_scales_are_what_the_format_stores(name):
    format, weight_MK = FORMATS[name], weight()
    qparams = choose_qparams(weight_MK, format, QUANTIZER)
    rows, columns = format.block
    assert qparams.scale.shape == (256 // rows, 256 // columns)
    mantissa, _ = torch.frexp(qparams.scale)
    if format.scales == "e8m0":
        assert (mantissa == 0.5).all()
    if format.scales == "e4m3":
        code = qparams.scale / qparams.global_scale
        assert torch.equal(code.to(torch.float8_e4m3fn).float(), code)
        assert 224 < code.max() <= 448


def test_weights_that_share_a_global_scale_get_the_same():
    format, weight_MK = FORMATS["nvfp4a16"], weight()
    largest = weight_MK.abs().max()
    parts = [choose_qparams(part, format, QUANTIZER, largest) for part in weight_MK.split(64)]
    whole = choose_qparams(weight_MK, format, QUANTIZER)
    assert all(torch.equal(part.global_scale, whole.global_scale) for part in parts)
    assert torch.equal(torch.cat([part.scale for part in parts]), whole.scale)


def test_fp4_in_blocks_of_16_by_hand():
    # Largest 12: scale 2 in fp8 numbers, codes -6, 0.5 (0.45), 1 (0.75, half to even), 2 (2.5, half to even).
    weight_MK = torch.tensor([[-12.0, 0.9, 1.5, 5.0, *[0.0] * 12]])
    rounded = fake_quantize(weight_MK, FORMATS["nvfp4a16"], Quantizer(range="absmax"))
    assert rounded[0, :4].tolist() == [-12.0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(("name", "share"), [("nvfp4a16", 0.8), ("mxfp4a16", 0.95)])
def test_searched_scales_of_fp4_lose_less(name, share):
    weight_MK = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [
        (fake_quantize(weight_MK, FORMATS[name], Quantizer(range=range)) - weight_MK).square().sum()
        for range in ("mse", "absmax")
    ]
    assert errors[0] < share * errors[1]
