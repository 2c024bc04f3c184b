"""Samples that share text with earlier ones are found wherever their windows begin; the oracle compares substrings."""

import json
import logging
import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.data.overlap import run_hashes, seen_runs, shared_tokens
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.models.data.splits import load_splits
from hpcmpq.settings import CalibrationConfig, Config, EvaluationConfig, ModelConfig

LENGTH = 128


def text_of(seed: int, length: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_lowercase, k=length))


def splits_of(model: Path, folder: Path, text: str, other: str | None = None, **values) -> Splits:
    (folder / "text.txt").write_text(text)
    (folder / "other.txt").write_text(other or "")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": LENGTH}))
    settings = {"num_samples": 24, "held_out": 8, "sequence_length": LENGTH} | values
    evaluation = None if other is None else str(folder / "other.txt")
    return load_splits(
        Config(
            model=ModelConfig(path=str(model)),
            calibration=CalibrationConfig(data=str(folder / "text.txt"), **settings),
            evaluation=EvaluationConfig(data=evaluation, num_samples=100),
        )
    )


def texts(samples: Samples) -> list[bytes]:
    return [bytes(row) for row in samples.inputs["input_ids"].tolist()]


def share(text: bytes, earlier: list[bytes]) -> float:
    """Share of the bytes of a text that lie in 32 bytes in a row that an earlier text holds."""
    inside = set()
    for start in range(len(text) - 31):
        if any(text[start : start + 32] in other for other in earlier):
            inside |= set(range(start, start + 32))
    return len(inside) / len(text)


def test_the_calibration_text_behind_one_byte_more_is_no_evaluation_text(model_directory, tmp_path):
    text = text_of(0, 32 * LENGTH)
    with pytest.raises(
        UserError, match="none of the 32 samples of evaluation.data .* is left: 32 with half or more"
    ):
        splits_of(model_directory("llama"), tmp_path, text, "x" + text)


def test_windows_with_calibrated_text_are_dropped_and_smaller_shares_are_said(
    model_directory, tmp_path, caplog
):
    # 24 + 8 of 64 windows are chosen; the other text has the same ones 40 bytes later, and new ones.
    text, fresh = text_of(1, 64 * LENGTH), text_of(2, 20 * LENGTH)
    with caplog.at_level(logging.WARNING):
        splits = splits_of(model_directory("llama"), tmp_path, text, text_of(3, 40) + text + fresh)
    earlier = texts(splits.calibration) + texts(splits.held_out)
    kept = {window: share(window, earlier) for window in texts(splits.evaluation)}
    assert all(value < 0.5 for value in kept.values())
    everything = (text_of(3, 40) + text + fresh).encode()
    windows = [everything[k : k + LENGTH] for k in range(0, len(everything) - LENGTH + 1, LENGTH)]
    assert sorted(kept) == sorted(w for w in windows if share(w, earlier) < 0.5)
    assert splits.num_overlapping == len(windows) - len(kept)
    assert f"dropped {splits.num_overlapping} samples with half or more of their tokens in" in caplog.text
    partly = [value for value in kept.values() if value > 0]
    assert partly
    mean = 100 * sum(kept.values()) / len(kept)
    assert (
        f"{len(partly)} of {len(kept)} evaluation samples share 32 or more consecutive tokens" in caplog.text
    )
    assert f"{mean:.2g} % of their tokens" in caplog.text


def test_a_text_that_repeats_itself_is_dropped_from_later_sets_alone(model_directory, tmp_path):
    model = model_directory("llama")
    splits = splits_of(model, tmp_path, text_of(4, 50 * LENGTH) + "y" + text_of(4, 50 * LENGTH))
    earlier = texts(splits.calibration)
    assert splits.num_overlapping > 0
    assert all(share(window, earlier) < 0.5 for window in texts(splits.held_out))
    assert all(share(w, earlier + texts(splits.held_out)) < 0.5 for w in texts(splits.evaluation))


def test_text_from_a_template_is_taken_after_all_and_told(model_directory, tmp_path, caplog):
    template = " was the day on which everybody in the house went out to look at the river and the boats; "
    lines = [text_of(number, 8) + template for number in range(99)]
    with caplog.at_level(logging.WARNING):
        splits = splits_of(model_directory("llama"), tmp_path, "".join(lines), num_samples=16, held_out=8)
    assert [len(part) for part in (splits.calibration, splits.held_out)] == [16, 8]
    assert len(splits.evaluation) > 0
    earlier = texts(splits.calibration)
    assert all(share(window, earlier) >= 0.5 for window in texts(splits.held_out))
    assert "8 of 8 held-out samples share 32 or more consecutive tokens with earlier sets" in caplog.text
    every = [
        window for part in (splits.calibration, splits.held_out, splits.evaluation) for window in texts(part)
    ]
    assert len(set(every)) == len(every)


def test_texts_that_share_nothing_are_left_alone(model_directory, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        splits = splits_of(
            model_directory("llama"), tmp_path, text_of(5, 40 * LENGTH), text_of(6, 70 * LENGTH)
        )
    assert splits.num_overlapping == 0 and len(splits.evaluation) == 70
    assert "share" not in caplog.text and "dropped" not in caplog.text


def test_equal_runs_and_only_those_have_equal_hashes():
    tokens = np.random.default_rng(0).integers(0, 2, 4000)
    tokens[1000:1500] = tokens[100:600]
    tokens[2000:2040] = 1
    hashes = run_hashes(tokens)
    runs = [tuple(tokens[k : k + 32].tolist()) for k in range(len(tokens) - 31)]
    by_run = {
        run: {h for h, r in zip(hashes.tolist(), runs, strict=True) if r == run} for run in set(runs[:700])
    }
    assert all(len(values) == 1 for values in by_run.values())
    assert len(np.unique(hashes)) == len(set(runs))
    assert (hashes == 0).tolist() == [len(set(run)) == 1 for run in runs]
    assert len(run_hashes(tokens[:31])) == 0


def test_padding_and_blanks_in_a_row_are_nothing_in_common():
    blanks_NT = torch.full((2, 80), 32)
    blanks_NT[1, 0] = 65
    assert (
        shared_tokens(
            Samples({"input_ids": blanks_NT[1:]}), 0, seen_runs(Samples({"input_ids": blanks_NT[:1]}))
        )
        == 0
    )
    ids_NT = torch.arange(160).reshape(2, 80)
    ids_NT[:, 30:] = torch.arange(50)
    mask_NT = (torch.arange(80) < 30).expand(2, 80).long()
    masked, open_ = ({"input_ids": ids_NT, "attention_mask": mask_NT}, {"input_ids": ids_NT})
    assert shared_tokens(Samples(masked), 1, seen_runs(Samples(masked)[:1])) == 0
    assert shared_tokens(Samples(open_), 1, seen_runs(Samples(open_)[:1])) == 50 / 80
    assert len(seen_runs(Samples({"pixel_values": torch.ones(2, 3, 4, 4)}))) == 0
