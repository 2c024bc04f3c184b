"""Every value of a config that changes outputs is in a GGUF file, whose reader computes the same, or is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hpcmpq.errors import UserError
from hpcmpq.export import export
from hpcmpq.models.gguf_config import check_gguf_config, resolved_config
from tests.export.planned import LLAMA3, SIZE, llama, plan_run, qwen2, solve_by_turns
from tests.export.readers import READERS
from tests.export.test_round_trips import GGUF, fake_quantized_logits, tokens

pytestmark = pytest.mark.slow

CONFIG = {"target": "llama_cpp", "formats": GGUF, "quantizer": {"group_size": 32}}

FLIPPED = {
    "vocab_size": 288, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 48,
    "rms_norm_eps": 1e-2, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "tie_word_embeddings": True, "initializer_range": 0.1, "use_cache": False, "pad_token_id": 3, "bos_token_id": 5,
    "eos_token_id": 7, "pretraining_tp": 2, "attention_dropout": 0.5, "chunk_size_feed_forward": 4,
    "hidden_act": "relu", "attention_bias": True, "mlp_bias": True, "is_causal": False,
    "is_encoder_decoder": True,
}  # fmt: skip
"""A value of every key that a Llama's config declares, or its code reads, that is not the default."""

NAMES = {
    "transformers_version", "architectures", "return_dict", "dtype", "id2label", "label2id", "problem_type",
    "_name_or_path", "model_type", "output_hidden_states", "output_attentions",
}  # fmt: skip
"""Keys that say what a model is called, by whom it was saved, how it is loaded, and what it gives beside logits."""

REFUSED = {"hidden_act", "attention_bias", "mlp_bias", "is_causal", "is_encoder_decoder"}


def refusal(**settings) -> str | None:
    config = transformers.LlamaConfig(**{**SIZE, **settings}, architectures=["LlamaForCausalLM"])
    try:
        check_gguf_config(config)
    except UserError as error:
        return str(error)
    return None


def test_every_key_of_a_llama_is_refused_or_read_back(tmp_path: Path):
    assert set(transformers.LlamaConfig().to_dict()) - NAMES == set(FLIPPED) - {"is_causal"}
    assert refusal() is None
    assert {key for key, value in FLIPPED.items() if refusal(**{key: value}) is not None} == REFUSED
    kept = {key: value for key, value in FLIPPED.items() if key not in REFUSED}
    np.save(tmp_path / "ids.npy", np.arange(20 * 32).reshape(20, 32) % 288)
    data = {"data": str(tmp_path / "ids.npy"), "num_samples": 4, "held_out": 2, "sequence_length": 32}
    run, plan = plan_run(tmp_path, llama(**kept), calibration=data, **CONFIG)
    assignment = solve_by_turns(run, plan)
    export(run, "gguf")
    read = READERS["gguf"](run.path / "exports" / "gguf")(tokens())
    expected = fake_quantized_logits(run, plan, assignment)
    assert expected.std() > 0.1
    torch.testing.assert_close(read, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "relu"}, "says hidden_act: 'relu', and readers of a GGUF file of llama take 'silu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rotary positions of type 'linear'"),
        ({"partial_rotary_factor": 0.5}, "says partial_rotary_factor: 0.5"),
    ],
)
def test_refusals_say_the_key_and_what_to_do(settings, message):
    assert message in str(refusal(**settings))
    assert str(refusal(**settings)).endswith("export tool_configs, which has a list for llama-quantize")


def test_a_key_that_a_later_transformers_adds_is_refused_unless_it_is_the_default(monkeypatch):
    known = transformers.LlamaConfig.to_dict
    monkeypatch.setattr(
        transformers.LlamaConfig,
        "to_dict",
        lambda self: known(self) | {"soft_cap": getattr(self, "soft_cap", None)},
    )
    assert refusal() is None
    assert "does not know what soft_cap: 30.0 changes" in str(refusal(soft_cap=30.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.Qwen2Config(head_dim=64, hidden_size=128, num_attention_heads=4), "says head_dim: 64"),
        (transformers.Qwen3Config(attention_bias=True), "says attention_bias: True"),
        (transformers.Qwen3Config(rope_parameters=LLAMA3), "rotary positions of type 'llama3'"),
        (transformers.Qwen2Config(layer_types=["linear_attention"], num_hidden_layers=1), "linear_attention"),
        (
            transformers.LlamaConfig(architectures=["LlamaForSequenceClassification"]),
            "with a head, not Llama",
        ),
    ],
)
def test_other_architectures_are_held_to_what_their_readers_take_for_granted(config, message):
    with pytest.raises(UserError, match=message):
        check_gguf_config(config)


def test_plans_refuse_what_the_file_cannot_say(tmp_path):
    with pytest.raises(UserError, match="says mlp_bias: True"):
        plan_run(tmp_path, llama(mlp_bias=True), **CONFIG)


def test_a_config_without_what_its_class_says_is_enough(tmp_path):
    defaults = {"rms_norm_eps", "rope_parameters", "head_dim", "num_key_value_heads", "hidden_act"}

    def cut(directory: Path) -> None:
        values = json.loads((directory / "config.json").read_text())
        kept = {key: value for key, value in values.items() if key not in defaults}
        (directory / "config.json").write_text(json.dumps(kept))

    made = llama(rms_norm_eps=1e-6, num_key_value_heads=4)
    run, plan = plan_run(tmp_path, made, edit=cut, **CONFIG)
    assignment = solve_by_turns(run, plan)
    export(run, "gguf")
    read = READERS["gguf"](run.path / "exports" / "gguf")(tokens())
    torch.testing.assert_close(read, fake_quantized_logits(run, plan, assignment), rtol=0, atol=2e-6)


def test_a_window_is_the_length_of_the_files_context(tmp_path):
    torch.manual_seed(0)
    config = transformers.MistralConfig(**SIZE, sliding_window=40)
    run, plan = plan_run(tmp_path, transformers.MistralForCausalLM(config), **CONFIG)
    assignment = solve_by_turns(run, plan)
    export(run, "gguf")
    directory = run.path / "exports" / "gguf"
    assert resolved_config(tmp_path / "model").sliding_window == 40
    read = transformers.AutoConfig.from_pretrained(directory, gguf_file="model.gguf")
    assert read.max_position_embeddings == 40
    read_NTV = READERS["gguf"](directory)(tokens())
    torch.testing.assert_close(read_NTV, fake_quantized_logits(run, plan, assignment), rtol=0, atol=2e-6)


def test_a_window_that_no_layer_has_does_not_count(tmp_path):
    run, plan = plan_run(
        tmp_path, qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=2), **CONFIG
    )
    solve_by_turns(run, plan)
    export(run, "gguf")
    read = transformers.AutoConfig.from_pretrained(run.path / "exports" / "gguf", gguf_file="model.gguf")
    assert read.max_position_embeddings == SIZE["max_position_embeddings"]
