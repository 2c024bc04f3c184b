"""A directory that is replaced whole is not where people's files are lost, such as RUN/original."""

from pathlib import Path

import pytest
import torch

import hpcmpq
from hpcmpq.errors import UserError
from hpcmpq.models.load import quiet_transformers
from tests.store.tiny_source import sentences
from tests.tiny_models import llama

pytestmark = pytest.mark.slow

TEXTS = [sentences(range(60))]


def create(path: Path) -> None:
    torch.manual_seed(0)
    with quiet_transformers():
        hpcmpq.Run.create(
            llama(), TEXTS, run_dir=path, formats=["int4"], budgets={"weight_bits": 5.0}, num_samples=2,
            sequence_length=16, settings={"quantizer": {"group_size": 8}, "calibration": {"held_out": 0}},
        )  # fmt: skip


def test_files_beside_a_damaged_original_stay_until_they_are_moved_away(tmp_path: Path):
    create(tmp_path / "run")
    original = tmp_path / "run" / "original"
    whole = (original / "config.json").read_bytes()
    (original / "notes.txt").write_text("mine")
    create(tmp_path / "run")  # nothing is to be written again
    (original / "config.json").write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"original holds notes\.txt, which hpcmpq did not write there"):
        create(tmp_path / "run")
    assert (original / "notes.txt").read_text() == "mine"
    (original / "notes.txt").rename(tmp_path / "notes.txt")
    create(tmp_path / "run")
    assert (original / "config.json").read_bytes() == whole
