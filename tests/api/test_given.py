"""Samples in memory become files that hold the same samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hpcmpq.api.given import data_setting, model_settings, source_of
from hpcmpq.errors import UserError
from hpcmpq.models.data.sources import Batch, Documents, read_source
from hpcmpq.models.description import ModelDescription
from hpcmpq.store.run_dir import RunDir
from tests.tiny_models import llama

IDS = torch.arange(24).reshape(6, 4)
CAUSAL = ModelDescription("causal_lm", main_input="input_ids", vocab_size=256)
PAIRS = [(IDS[:4], IDS[:4, 0]), (IDS[4:], IDS[4:, 0])]


def written(data: Any, tmp_path: Path) -> Any:
    path = data_setting(RunDir(tmp_path), "calibration", data, CAUSAL, 100)
    return read_source(path, "calibration.data", 100)


def test_texts_stay_texts(tmp_path: Path):
    texts = ("one\nline", "ähnlich\u2028", " ")
    assert written(list(texts), tmp_path) == Documents(texts)
    records = [{"text": text, "label": number} for number, text in enumerate(texts)]
    assert written(records, tmp_path) == Documents(texts, (0, 1, 2))
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"calibration.jsonl", "SHA256SUMS"}


def test_data_sets_are_taken_by_their_columns(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0], "id": [5, 6]})
    assert written(texts, tmp_path) == Documents(("a", "b"), (1, 0))
    numbers = datasets.Dataset.from_dict({"input_ids": IDS.tolist(), "labels": IDS.tolist()})
    [batch] = written(numbers, tmp_path)
    assert torch.equal(batch.inputs["input_ids"], IDS) and torch.equal(batch.targets, IDS)
    assert not batch.shifted
    with pytest.raises(UserError, match="splits train; give one"):
        source_of(datasets.DatasetDict({"train": texts}), "the data", 10)


@pytest.mark.parametrize("data", [IDS, IDS.numpy(), IDS.to(torch.bfloat16)])
def test_arrays_stay_arrays(data: Any, tmp_path: Path):
    assert torch.equal(written(data, tmp_path).to(torch.int64), IDS)


@pytest.mark.parametrize(
    ("data", "shifted"),
    [
        ({"input_ids": IDS, "labels": IDS[:, 0]}, False),
        (DataLoader([{"input_ids": row, "labels": row[0]} for row in IDS], batch_size=4), False),
        ((IDS, IDS[:, 0]), True),
        (DataLoader([(row, row[0]) for row in IDS], batch_size=4), True),
        (iter(PAIRS), True),
    ],
)  # fmt: skip
def test_batches_become_named_arrays(data: Any, shifted: bool, tmp_path: Path):
    [batch] = written(data, tmp_path)
    assert isinstance(batch, Batch) and batch.shifted is shifted
    assert torch.equal(batch.inputs["input_ids"], IDS)
    assert torch.equal(batch.targets, IDS[:, 0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"text": "a"}, {"txt": "b"}], "no text in some record"),
        ([{"text": "a", "label": 1}, {"text": "b"}], "labels in some records and none in others"),
        (3, "are of type int; give a file"),
        ([torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, 4)], "different shapes"),
        (np.zeros(0), "empty array"),
    ],
)  # fmt: skip
def test_what_are_no_samples_is_said(data: Any, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        written(data, tmp_path)


def test_a_model_whose_weights_are_elsewhere_is_refused(tmp_path: Path):
    half = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2, device="meta"))
    for model, first in ((half, "1.weight"), (llama().to("meta"), "model.embed_tokens.weight")):
        with pytest.raises(
            UserError, match=rf"parameters without values, first {first}; load it whole, or give its"
        ):
            model_settings(RunDir(tmp_path), model, None)
