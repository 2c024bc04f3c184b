"""Planning runs a batch of unequal lengths, as calibration will: what would fail there is a sentence here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.data.sources import Documents
from hpcmpq.models.data.tokenization import Tokenization
from hpcmpq.models.data.tokens import to_samples
from hpcmpq.models.description import describe_model
from hpcmpq.models.load import quiet_transformers
from hpcmpq.plan import Plan
from hpcmpq.planning.stage import prepare
from hpcmpq.settings import ModelConfig
from hpcmpq.store.run_dir import RunDir


def decoder_classifier(path: Path, pad_token_id: int | None) -> Path:
    """A Llama that classifies at the last token that is no padding."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, num_labels=3, pad_token_id=pad_token_id, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with quiet_transformers():
        transformers.LlamaForSequenceClassification(config).save_pretrained(path)
    return path


def planned(path: Path, model: Path, **changes: Any) -> Plan:
    data = path / "texts.jsonl"
    records = [{"text": "word " * (1 + n % 3) + str(n), "label": n % 3} for n in range(12)]
    data.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    calibration = {
        "data": str(data),
        "num_samples": 6,
        "held_out": 3,
        "sequence_length": 32,
        **changes.pop("calibration", {}),
    }
    values = {
        "model": {"path": str(model), **changes},
        "calibration": calibration,
        "evaluation": {"num_samples": 3},
    }
    return prepare(parse_config(values | {"budgets": {"weight_bits": 4}}), RunDir(path / "run"), ())


@pytest.mark.parametrize("stream", [False, True])
def test_a_decoder_classifier_without_a_padding_token_is_told_to_name_one(tmp_path: Path, stream: bool):
    model = decoder_classifier(tmp_path / "model", None)
    with pytest.raises(UserError, match="fails on 4 samples at once .* set pad_token_id in its config.json"):
        planned(tmp_path, model, stream=stream)


def test_a_decoder_classifier_with_one_is_planned_and_padded_with_it(tmp_path: Path):
    model = decoder_classifier(tmp_path / "model", 7)
    assert planned(tmp_path, model).units
    description = describe_model(ModelConfig(path=str(model)))
    samples = to_samples(Documents(("abc", "a")), "data", description, 16, Tokenization())
    assert samples.inputs["input_ids"].tolist() == [[97, 98, 99], [97, 7, 7]]


def test_one_sample_a_pass_needs_no_padding_token(tmp_path: Path):
    model = decoder_classifier(tmp_path / "model", None)
    assert planned(tmp_path, model, calibration={"samples_per_pass": 1}).units


def test_the_batch_has_the_shortest_and_the_longest_sample():
    lengths = torch.tensor([3, 5, 4, 1, 2, 4])
    mask_NT = (torch.arange(5) < lengths[:, None]).long()
    samples = Samples({"input_ids": torch.arange(30).view(6, 5), "attention_mask": mask_NT})
    assert samples.of_all_lengths(3).inputs["attention_mask"].sum(1).tolist() == [1, 3, 5]
    assert sorted(samples.of_all_lengths(9).inputs["input_ids"][:, 0].tolist()) == [0, 5, 10, 15, 20, 25]
    assert Samples({"input": torch.arange(4)}).of_all_lengths(2).inputs["input"].tolist() == [0, 1]
