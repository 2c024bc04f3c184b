"""A directory whose files are missing, damaged or another model's is refused in a sentence, streamed or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.models.description import describe_model
from hpcmpq.planning.stage import prepare
from hpcmpq.settings import ModelConfig
from hpcmpq.store.run_dir import RunDir
from tests.export.planned import llama

INDEX, SECOND = "model.safetensors.index.json", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The directory of a Llama in two files."""
    path = tmp_path_factory.mktemp("sharded") / "model"
    llama().save_pretrained(path, max_shard_size="800KB")
    assert (path / SECOND).exists()
    return path


def plan(model: Path, folder: Path, stream: bool) -> None:
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    values = {
        "model": {"path": str(model), "stream": stream},
        "calibration": {
            "data": str(folder / "text.txt"),
            "num_samples": 4,
            "sequence_length": 16,
            "held_out": 2,
            "samples_per_unit": 4,
        },
        "formats": ["int4"],
        "quantizer": {"group_size": 32},
        "budgets": {"weight_bits": 4},
    }
    prepare(parse_config(values), RunDir(folder / "run"), ())


def changed(model: Path, **changes: object) -> None:
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**values, **changes}))


def mapped(model: Path, to: object) -> None:
    values = json.loads((model / INDEX).read_text())
    (model / INDEX).write_text(json.dumps({**values, "weight_map": dict.fromkeys(values["weight_map"], to)}))


def poisoned(model: Path) -> None:
    tensors = load_file(model / SECOND)
    name = next(name for name in tensors if "layers" in name and tensors[name].ndim > 1)
    tensors[name][0, 0] = torch.inf
    save_file(tensors, model / SECOND, {"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda model: (model / SECOND).unlink(), SECOND),
    "cut": (
        lambda model: (model / SECOND).write_bytes((model / SECOND).read_bytes()[:-1000]),
        "SafetensorError",
    ),
    "empty": (lambda model: (model / SECOND).write_bytes(b""), "SafetensorError"),
    "pointer": (
        lambda model: (model / SECOND).write_text("version https://git-lfs.github.com/spec/v1"),
        "Safetensor",
    ),
    "index": (lambda model: (model / INDEX).write_text("{"), "JSONDecodeError"),
    "no map": (lambda model: (model / INDEX).write_text("{}"), "weight_map"),
    "numbers": (lambda model: mapped(model, 5), "TypeError"),
    "folder": (lambda model: mapped(model, "."), "Is a directory|No such device"),
    "other size": (lambda model: changed(model, hidden_size=64), "mismatched|and config.json makes it"),
    "infinite": (poisoned, r"1 of \d+ values of parameter model\.layers.* are NaN or infinite"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_directory_is_refused_in_a_sentence(sharded, tmp_path, name: str, stream: bool):
    shutil.copytree(sharded, tmp_path / "model")
    damage, message = DAMAGE[name]
    damage(tmp_path / "model")
    with pytest.raises(UserError, match=message) as told:
        plan(tmp_path / "model", tmp_path, stream)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_a_config_of_fewer_blocks_than_the_files_hold_is_questioned(sharded, tmp_path, caplog):
    shutil.copytree(sharded, tmp_path / "model")
    plan(tmp_path / "model", tmp_path, stream=False)
    assert "are no part of the model" not in caplog.text
    changed(tmp_path / "model", num_hidden_layers=1)
    (tmp_path / "run" / "plan.json").unlink()
    plan(tmp_path / "model", tmp_path, stream=False)
    assert "% of the numbers in the files" in caplog.text and "first model.layers.1." in caplog.text


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "torch.float16"}, "float16"),
        ({"dtype": "auto"}, None),
        ({"dtype": 16}, None),
        ({"dtype": None, "text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": "bfloat16", "text_config": {"dtype": "float32"}}, "bfloat16"),
        ({"dtype": None}, None),
    ],
)
def test_the_stored_dtype_is_one_of_torch_or_unknown(sharded, tmp_path, changes, dtype):
    shutil.copytree(sharded, tmp_path / "model")
    changed(tmp_path / "model", **changes)
    assert describe_model(ModelConfig(path=str(tmp_path / "model"))).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": {"a": 1}}, "names no architecture"),
        ({"architectures": "LlamaForCausalLM"}, "names no architecture"),
        ({"text_config": [1]}, "text_config that is no object"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"a": "b"}}, "id2label"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": ["a"]}, "id2label"),
    ],
)
def test_a_config_that_says_something_else_than_it_should(sharded, tmp_path, changes, message):
    shutil.copytree(sharded, tmp_path / "model")
    changed(tmp_path / "model", **changes)
    with pytest.raises(UserError, match=message):
        describe_model(ModelConfig(path=str(tmp_path / "model")))


def test_a_number_of_labels_without_names_is_as_many_classes(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "model")
    changed(tmp_path / "model", architectures=["BertForSequenceClassification"], num_labels=3)
    classes = describe_model(ModelConfig(path=str(tmp_path / "model"))).classes
    assert classes == ("LABEL_0", "LABEL_1", "LABEL_2")
