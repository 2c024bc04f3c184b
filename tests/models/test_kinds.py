"""Which models are known by their class: all that transformers loads for a task, whatever they are called."""

import pytest
import torch

from hpcmpq.models.description import describe_model
from hpcmpq.models.kinds import AUTO_CLASSES, kind_of
from hpcmpq.models.load import forward, load_model
from hpcmpq.settings import ModelConfig

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", [kind for kind in AUTO_CLASSES if kind != "encoder"])
def test_every_class_of_transformers_is_of_a_kind_that_loads_it(kind):
    import transformers

    loads = {
        each: set(_names(getattr(transformers, auto)._model_mapping._model_mapping.values()))
        for each, auto in AUTO_CLASSES.items()
    }
    for architecture in sorted(loads[kind]):
        if not architecture.endswith("ForConditionalGeneration"):  # which are known by their settings
            assert architecture in loads[kind_of(architecture, {})], architecture


def _names(values):
    for names in values:
        yield from [names] if isinstance(names, str) else names


@pytest.mark.parametrize(
    ("architecture", "settings", "kind"),
    [
        ("BertGenerationDecoder", SMALL | {"intermediate_size": 32, "is_decoder": True}, "causal_lm"),
        ("BertGenerationEncoder", SMALL | {"intermediate_size": 32}, "encoder"),
        (
            "MllamaForCausalLM",  # whose configuration AutoModelForCausalLM knows no class for
            SMALL
            | {"intermediate_size": 32, "num_key_value_heads": 2, "cross_attention_layers": []}
            | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            "causal_lm",
        ),
        (
            "FlaubertWithLMHeadModel",
            {"vocab_size": 40, "emb_dim": 32, "n_layers": 1, "n_heads": 2},
            "masked_lm",
        ),
    ],
)
def test_classes_with_other_ends_are_loaded(tmp_path, architecture, settings, kind):
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, architecture)
    model = made(made.config_class(**settings)).eval()
    model.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    description = describe_model(config)
    assert (description.kind, description.main_input) == (kind, "input_ids")
    ids = {"input_ids": torch.randint(5, 40, (2, 6))}
    with torch.no_grad():
        torch.testing.assert_close(forward(load_model(config), ids), model(**ids)[0])


def test_a_model_of_text_and_sound_is_a_language_model_where_it_is_given_text(tmp_path):
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    torch.manual_seed(0)
    text = {"model_type": "qwen2", **SMALL, "intermediate_size": 32, "num_key_value_heads": 2}
    sound = {
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "num_mel_bins": 8,
    }
    settings = Qwen2AudioConfig(text_config=text, audio_config=sound, audio_token_index=39)
    model = Qwen2AudioForConditionalGeneration(settings).eval()
    model.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    description = describe_model(config)
    assert (description.kind, description.vocab_size, description.main_input) == (
        "causal_lm",
        40,
        "input_ids",
    )
    ids = {"input_ids": torch.randint(5, 30, (2, 6))}
    with torch.no_grad():
        torch.testing.assert_close(forward(load_model(config), ids), model(**ids).logits)
