"""Data that a file can hold and a model cannot take: byte orders, halves of characters, labels that are no outputs."""

import json
import random

import numpy as np
import pytest
import torch

from hpcmpq.config import parse_config
from hpcmpq.errors import UserError
from hpcmpq.models.data.sources import Documents, read_source
from hpcmpq.planning.stage import prepare
from hpcmpq.store.run_dir import RunDir


@pytest.mark.parametrize("kind", [">i4", "<i4", ">u2", ">i8"])
def test_arrays_of_either_byte_order_hold_the_same_numbers(tmp_path, kind: str):
    np.save(tmp_path / "a.npy", np.arange(300).astype(kind))
    read = read_source(str(tmp_path / "a.npy"), "calibration.data", 10)
    assert isinstance(read, torch.Tensor)
    assert read.tolist() == list(range(300))


def test_complex_numbers_are_refused_rather_than_halved(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3) * 1j)
    with pytest.raises(UserError, match=r"a\.npy holds complex numbers"):
        read_source(str(tmp_path / "a.npy"), "calibration.data", 10)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_damaged_array_is_refused_or_read(tmp_path, suffix: str):
    path, array = tmp_path / f"a.{suffix}", np.arange(64).reshape(2, 32)
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, input_ids=array)
    content, draw, refused = path.read_bytes(), random.Random(0), 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read_source(str(path), "calibration.data", 10)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 50


def test_an_array_under_the_name_of_several(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match="is not a readable .npz file of numbers"):
        read_source(str(tmp_path / "a.npz"), "calibration.data", 10)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_is_refused_rather_than_calibrated_on(tmp_path, suffix: str):
    (tmp_path / f"a.{suffix}").write_text("text,label\nhello,1\n")
    with pytest.raises(UserError, match="is a table.*write a line of JSON for each record"):
        read_source(str(tmp_path / f"a.{suffix}"), "calibration.data", 10)


def test_half_of_a_character_is_refused_by_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "whole \U0001f600"}) + "\n" + '{"text": "cut \\ud83d"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl line 2 holds \\ud83d, half of a character"):
        read_source(str(path), "calibration.data", 10)
    path.write_text(json.dumps({"text": "whole \U0001f600"}) + "\n")
    assert read_source(str(path), "calibration.data", 10) == Documents(("whole \U0001f600",))


@pytest.mark.parametrize("wrong", [256, -1])
def test_labels_that_are_no_outputs_are_refused_before_anything_is_measured(
    model_directory, tmp_path, wrong: int
):
    tokens = np.random.default_rng(0).integers(0, 256, (20, 16))
    labels = tokens.copy()
    labels[3, 5] = wrong
    np.savez(tmp_path / "a.npz", input_ids=tokens, labels=labels)
    values = {
        "model": {"path": str(model_directory("llama"))},
        "calibration": {
            "data": str(tmp_path / "a.npz"),
            "num_samples": 4,
            "sequence_length": 16,
            "held_out": 4,
            "samples_per_unit": 4,
        },
        "evaluation": {"num_samples": 12},
        "formats": ["int4"],
        "quantizer": {"group_size": 8},
    }
    with pytest.raises(UserError, match=f"target {wrong} is none of the model's 256 outputs"):
        prepare(parse_config(values), RunDir(tmp_path / "run"), ())
    assert not (tmp_path / "run" / "plan.json").exists()


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_one_output_has_no_distribution_to_compare(tmp_path, monkeypatch, objective: str):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "one_output.py").write_text(
        "import torch\n"
        "def model():\n    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))\n"
        "def data():\n    return torch.randn(20, 8), torch.zeros(20, dtype=torch.int64)\n"
    )
    values = {
        "model": {"factory": "one_output:model"},
        "calibration": {"data": "one_output:data", "num_samples": 4, "held_out": 4, "samples_per_unit": 4},
        "formats": ["int4"],
        "quantizer": {"group_size": 8},
        "groups": {"include": ["*"]},
    }
    with pytest.raises(
        UserError, match=f"one output, of which objective {objective} is always 0; set objective: mse"
    ):
        prepare(parse_config({**values, "objective": objective}), RunDir(tmp_path / "run"), (str(tmp_path),))
    prepare(parse_config({**values, "objective": "mse"}), RunDir(tmp_path / "run"), (str(tmp_path),))
