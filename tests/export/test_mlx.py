"""What the mlx export stores is what MLX itself makes of the same codes, bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hpcmpq.errors import UserError
from hpcmpq.export import export
from hpcmpq.export.mlx import positions, scheme, stored
from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.quantized.rounded_weights import choose_qparams, encode, fake_quantize
from hpcmpq.targets import TARGETS
from tests.export.planned import SIZE, llama, plan_run, qwen2, qwen3, solve_by_turns
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


def test_a_model_in_float16_is_computed_in_float16(tmp_path):
    skip_without_reader("mlx")
    import mlx.core as mx
    from mlx_lm.utils import load_model

    made = llama()
    made.model.layers[0].mlp.down_proj.weight.data[0] *= (
        1e-5  # whose scales bfloat16 holds, and float16 does not
    )
    run, plan = plan_run(
        tmp_path, made, torch.float16, target="mlx", quantizer={"group_size": 32}, formats=["int8"]
    )
    assert plan.config.quantizer.scales == "float16"
    solve_by_turns(run, plan)
    export(run, "mlx")
    model, _ = load_model(run.path / "exports" / "mlx")
    assert model(mx.array([[1, 2, 3]])).dtype == mx.float16
    assert model.model.layers[0].mlp.down_proj.scales.dtype == mx.float16


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


CONFIG = {"target": "mlx", "formats": ["int4", "bf16"], "quantizer": {"group_size": 32}}


def test_a_window_that_mlx_does_not_know_is_the_length_of_the_files_context(tmp_path):
    skip_without_reader("mlx")
    torch.manual_seed(0)
    made = transformers.MistralForCausalLM(transformers.MistralConfig(**SIZE, sliding_window=16))
    run, plan = plan_run(tmp_path, made, **CONFIG)
    solve_by_turns(run, plan)
    line = export(run, "mlx")
    assert "no sliding window: it is the original's model up to 16 tokens" in line
    directory = run.path / "exports" / "mlx"
    assert json.loads((directory / "config.json").read_text())["max_position_embeddings"] == 16
    assert json.loads((directory / "verification.json").read_text())["num_positions"] == 16


def test_what_the_config_leaves_to_its_class_is_written(tmp_path):
    """mlx-lm's own defaults are others: rotations of Qwen2 have another base there, and heads of a Llama are tied."""
    skip_without_reader("mlx")
    left = {"rms_norm_eps", "rope_parameters", "tie_word_embeddings", "max_position_embeddings"}

    def cut(directory: Path) -> None:
        values = json.loads((directory / "config.json").read_text())
        kept = {key: value for key, value in values.items() if key not in left}
        (directory / "config.json").write_text(json.dumps(kept))

    run, plan = plan_run(tmp_path, qwen2(tie_word_embeddings=False), edit=cut, **CONFIG)
    solve_by_turns(run, plan)
    assert "verified: mlx-lm" in export(run, "mlx")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: qwen3(attention_bias=True),
            "says attention_bias: True, and mlx-lm takes False for granted in qwen3",
        ),
        (
            lambda: llama(hidden_act="gelu"),
            "says hidden_act: 'gelu', and mlx-lm takes 'silu' for granted in llama",
        ),
    ],
)
def test_what_mlx_computes_otherwise_is_refused_when_planning(tmp_path, made, message):
    with pytest.raises(UserError, match=message):
        plan_run(tmp_path, made(), **CONFIG)
