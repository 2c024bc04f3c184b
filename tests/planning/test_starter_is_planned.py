"""For every model and text that `init` accepts, `plan` accepts its config."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from hpcmpq.config import read_config
from hpcmpq.errors import UserError
from hpcmpq.models.description import _PADDING_TOKENS, describe_model
from hpcmpq.models.load import quiet_transformers
from hpcmpq.planning.stage import prepare
from hpcmpq.planning.starter import write_starter
from hpcmpq.settings import ModelConfig
from hpcmpq.store.run_dir import RunDir
from tests.tiny_models import MODELS

pytestmark = pytest.mark.slow

SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def roberta_masked() -> nn.Module:
    """Positions count from the padding token on: 62 of 64 are for tokens."""
    config = transformers.RobertaConfig(**SIZE, vocab_size=256, max_position_embeddings=64, pad_token_id=1)
    return transformers.RobertaForMaskedLM(config)


def roberta_classifier() -> nn.Module:
    """The same, with its padding token elsewhere."""
    config = transformers.RobertaConfig(
        **SIZE, vocab_size=256, max_position_embeddings=64, pad_token_id=5, num_labels=3
    )
    return transformers.RobertaForSequenceClassification(config)


def _llama_classifier(pad_token_id: int | None) -> nn.Module:
    config = transformers.LlamaConfig(
        **SIZE, vocab_size=256, max_position_embeddings=64, num_labels=3, pad_token_id=pad_token_id
    )
    return transformers.LlamaForSequenceClassification(config)


def opt() -> nn.Module:
    """Positions with an offset that the table has rows for."""
    config = transformers.OPTConfig(
        hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=256,
        max_position_embeddings=64, word_embed_proj_dim=16,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


KINDS: dict[str, Callable[[], nn.Module]] = {
    **{name: MODELS[name] for name in ("llama", "gpt2", "bert", "bert_classifier")},
    "roberta_masked": roberta_masked,
    "roberta_classifier": roberta_classifier,
    "padded llama classifier": lambda: _llama_classifier(9),
    "llama classifier": lambda: _llama_classifier(None),
    "opt": opt,
}

LINES = "\n".join(f"{n} squared is {n * n} and cubed {n**3}, " + "and so on " * (n % 9) for n in range(240))
TEXTS = {
    "long": LINES,
    "216 tokens": LINES[:216],
    "12 lines": "\n".join(LINES.split("\n")[:12]),
    "short": "ab",
}

REFUSED = {
    "llama classifier": "set pad_token_id",  # any text
    "short": "fewer than|different samples|whole samples|has 2 tokens",
    "216 tokens": "different samples",  # seven lines of a classifier are enough, four are not
}


def saved(make: Callable[[], nn.Module], path: Path) -> Path:
    torch.manual_seed(0)
    with quiet_transformers():
        make().save_pretrained(path)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_what_init_accepts_is_planned(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    directory = saved(KINDS[name], tmp_path / "model")
    num_planned = 0
    for number, (text_name, text) in enumerate(TEXTS.items()):
        data, output = tmp_path / f"{number}.txt", tmp_path / f"{number}.yaml"
        data.write_text(text, encoding="utf-8")
        caplog.clear()
        try:
            with caplog.at_level(logging.INFO):
                write_starter(directory, output, str(data))
        except UserError as error:
            expected = [REFUSED[part] for part in (name, text_name) if part in REFUSED]
            assert expected and re.search("|".join(expected), str(error)), str(error)
            continue
        config = read_config(output)
        if text_name != "long":
            assert "for want of text" in caplog.text or "are shared out" in caplog.text
        assert prepare(config, RunDir(tmp_path / f"run{number}"), ()).units
        num_planned += 1
    assert num_planned >= (0 if name in REFUSED else 2)


def test_a_short_text_makes_short_windows_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = tmp_path / "text.txt"
    data.write_text(TEXTS["216 tokens"])
    with caplog.at_level(logging.INFO):
        write_starter(saved(KINDS["llama"], tmp_path / "model"), tmp_path / "config.yaml", str(data))
    config = read_config(tmp_path / "config.yaml")
    assert config.calibration.sequence_length == 16
    counts = (config.calibration.num_samples, config.calibration.held_out, config.evaluation.num_samples)
    assert counts == (6, 2, 2)
    assert "samples of 16 tokens instead of 64, for want of text: 13 of them" in caplog.messages
    assert "13 samples are shared out, 224 would be better" in caplog.messages


SMALLER = {"attention_window": 8, "encoder_layers": 1, "decoder_layers": 1, "image_size": 16}


@pytest.mark.parametrize("model_type", _PADDING_TOKENS)
def test_positions_before_the_first_token_are_known(model_type: str, tmp_path: Path):
    """Rows of the table of positions behind the padding token's; of two models also by what they take."""
    make = transformers.models.auto.configuration_auto.CONFIG_MAPPING[model_type]
    assert make().pad_token_id in (_PADDING_TOKENS[model_type], None)
    sizes = {**SIZE, **SMALLER, "vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 2}
    config = make(**sizes, position_embedding_type="absolute")
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["AnyModel"]}))
    longest = describe_model(ModelConfig(path=str(tmp_path))).max_positions
    with quiet_transformers():
        model = transformers.AutoModel.from_config(config).eval()
    tables = [m for name, m in model.named_modules() if name.split(".")[-1] == "position_embeddings"]
    [table] = [m for m in tables if getattr(m, "padding_idx", None) is not None]
    assert longest == len(table.weight) - 1 - table.padding_idx
    assert longest == (38 if model_type == "mpnet" else 37)
    if model_type in ("roberta", "mpnet"):
        ids = torch.full((1, longest), 7)
        assert model(input_ids=ids).last_hidden_state.shape[1] == longest
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.cat([ids, ids[:, :1]], dim=1))
