"""What a file or a factory holds is told by its name and its type, never calibrated on as raw syntax."""

from collections import UserDict

import numpy as np
import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.data.sources import Documents, read_source, to_source

LINES = '\n{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize("name", ["data.jsonl", "data.JSONL", "data.json", "data.NDJSON"])
def test_json_lines_are_read_as_such_whatever_the_case(tmp_path, name: str):
    (tmp_path / name).write_text(LINES)
    assert read_source(str(tmp_path / name), "calibration.data", 4) == Documents(("one", "two"))


@pytest.mark.parametrize("text", ['[{"text": "one"}]', '{\n  "text": "one"\n}', "one"])
def test_other_json_is_refused(tmp_path, text: str):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data.json is not one JSON object a line.*\.jsonl"):
        read_source(str(tmp_path / "data.json"), "calibration.data", 4)


def test_arrays_are_told_whatever_the_case(tmp_path):
    with open(tmp_path / "data.NPY", "wb") as file:
        np.save(file, np.arange(6).reshape(2, 3))
    source = read_source(str(tmp_path / "data.NPY"), "calibration.data", 4)
    assert isinstance(source, torch.Tensor) and source.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_mapping_that_is_no_dict_is_one_batch():
    """As the result of a tokenizer, a `UserDict`."""
    encoded = UserDict(input_ids=torch.ones(2, 3), attention_mask=torch.ones(2, 3))
    [batch] = to_source(encoded, "factory", 4)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
