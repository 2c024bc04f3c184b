"""What the mlx export stores is what MLX itself makes of the same codes, bit for bit."""

import numpy as np
import pytest
import torch

from hpcmpq.export.mlx import positions, scheme, stored
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantized.rounded_weights import choose_qparams, encode, fake_quantize
from hpcmpq.targets import TARGETS
from tests.export.planned import llama
from tests.export.readers import skip_without_reader
from tests.export.test_round_trips import check_refused

QUANTIZER = Quantizer(group_size=32)


@pytest.mark.parametrize("name", [name for name in TARGETS["mlx"].formats if name != "bf16"])
def test_mlx_dequantizes_what_is_stored_to_the_quantizers_weights(name):
    skip_without_reader("mlx")
    import mlx.core as mx

    weight_MK = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    format = FORMATS[name]
    qparams = choose_qparams(weight_MK, format, QUANTIZER)
    tensors = stored(
        "layer.weight", encode(weight_MK, qparams, format, QUANTIZER), qparams, format, QUANTIZER
    )
    assert tensors["layer.weight"].dtype == torch.uint32
    given = [tensors.get(f"layer.{part}") for part in ("weight", "scales", "biases")]
    arrays = [
        None if t is None else mx.array((t.float() if t.is_floating_point() else t).numpy()) for t in given
    ]
    found = mx.dequantize(*arrays, **scheme(format, QUANTIZER), dtype=mx.float32)
    expected_MK = fake_quantize(weight_MK, format, QUANTIZER)
    assert np.array_equal(np.array(found), expected_MK.numpy())


def test_scaled_rotations_are_named_as_mlx_reads_them():
    given = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
    expected = {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert positions({"rope_parameters": given}) == expected
    assert positions({"rope_theta": 1e6}) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"formats": ["int4", "int7"]}, r"mlx cannot hold int7; set solver\.forbidden"),
        (
            {"formats": ["int4"], "quantizer": {"group_size": 16}},
            "target mlx holds groups of 32, 64, 128 weights",
        ),
        ({"formats": ["int4"], "quantizer": {"group_size": 32, "symmetric": False}}, "symmetric codes only"),
    ],
)
def test_what_mlx_cannot_hold_is_refused(tmp_path, config, message):
    check_refused(tmp_path, llama(), "mlx", {"quantizer": {"group_size": 32}, **config}, message)
