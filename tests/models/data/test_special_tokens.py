"""Samples begin and end as the model's tokenizer begins and ends a text, unless they are told not to."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.data.splits import IGNORED, Splits, load_splits
from hpcmpq.settings import CalibrationConfig, Config, EvaluationConfig, ModelConfig
from tests.models.byte_tokenizer import BOS, EOS, VOCAB, save_byte_tokenizer

TEXT = " ".join(f"{number}: {number**2}, {number**3};" for number in range(300))
OTHER = " ".join(f"{number} has the root {number**0.5:.6f}." for number in range(100))


@pytest.fixture
def directory(model_directory):
    """Function from the name of a model to its directory, with room in the vocabulary for special tokens."""

    def make(name: str = "llama") -> Path:
        path = model_directory(name)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | {"vocab_size": VOCAB}))
        return path

    return make


def splits_of(path: Path, folder: Path, special_tokens: bool | None = True, **values) -> Splits:
    (folder / "text.txt").write_text(TEXT)
    (folder / "other.txt").write_text(OTHER)
    settings = {"data": str(folder / "text.txt"), "num_samples": 8, "held_out": 4, "sequence_length": 16}
    return load_splits(
        Config(
            model=ModelConfig(path=str(path)),
            calibration=CalibrationConfig(**{**settings, **values}, special_tokens=special_tokens),
            evaluation=EvaluationConfig(data=str(folder / "other.txt"), num_samples=6),
        )
    )


def rows(splits: Splits) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets of all three sets."""
    parts = (splits.calibration, splits.held_out, splits.evaluation)
    return torch.cat([p.inputs["input_ids"] for p in parts]), torch.cat([p.targets for p in parts])


FRAMES = [
    ((), ()),
    (("<s>",), ()),
    (("<s>",), ("</s>",)),
    ((), ("</s>",)),
    (("</s>", "<s>"), ("</s>", "</s>")),
]
IDS = {"<s>": BOS, "</s>": EOS}


@pytest.mark.parametrize(("start", "end"), FRAMES)
def test_windows_stand_between_what_the_tokenizer_puts_around_a_text(directory, tmp_path, start, end):
    path = directory()
    save_byte_tokenizer(path, (), ())
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(path)
    save_byte_tokenizer(path, start, end)
    splits = splits_of(path, tmp_path)
    ids_NT, targets_NT = rows(splits)
    assert ids_NT.shape == (18, 16)
    inner = slice(len(start), 16 - len(end))
    streams = [plain(text)["input_ids"] for text in (TEXT, OTHER)]
    width = 16 - len(start) - len(end)
    windows: dict[tuple[int, ...], set[int]] = {}
    for stream in streams:
        for k in range(0, len(stream) - width + 1, width):
            follower = stream[k + width] if k + width < len(stream) else IGNORED
            windows.setdefault(tuple(stream[k : k + width]), set()).add(follower)
    for ids, targets in zip(ids_NT.tolist(), targets_NT.tolist(), strict=True):
        assert ids[: inner.start] == [IDS[word] for word in start]
        assert ids[inner.stop :] == [IDS[word] for word in end]
        assert targets[inner][:-1] == ids[inner][1:]
        assert targets[inner][-1] in windows[tuple(ids[inner])]
        before = [*[IGNORED] * (len(start) - 1), ids[inner][0]] if start else []
        assert targets[: inner.start] == before
        assert targets[inner.stop :] == [IGNORED] * len(end)
    assert splits.special_tokens == (" ".join([*start, "...", *end]) if start or end else "")


def lines(folder: Path) -> str:
    path = folder / "lines.txt"
    path.write_text("\n".join(f"line {number}" for number in range(30)))
    return str(path)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_without_them_samples_are_those_of_a_tokenizer_that_adds_none(directory, tmp_path, name: str):
    path, data = directory(name), lines(tmp_path)
    save_byte_tokenizer(path, (), ())
    plain = splits_of(path, tmp_path, data=data)
    assert plain.special_tokens == ""
    for start, end in FRAMES:
        save_byte_tokenizer(path, start, end)
        switched_off = splits_of(path, tmp_path, False, data=data)
        assert switched_off.calibration.digest() == plain.calibration.digest()
        assert switched_off.evaluation.digest() == plain.evaluation.digest()
        assert switched_off.special_tokens == ""


def test_plans_of_before_keep_windows_without_and_other_samples_with_them(directory, tmp_path):
    path = directory("llama")
    save_byte_tokenizer(path, ("<s>",), ("</s>",))
    before, without = (splits_of(path, tmp_path, value) for value in (None, False))
    assert before.calibration.digest() == without.calibration.digest()
    path = directory("bert")
    save_byte_tokenizer(path, ("<s>",), ("</s>",))
    before, now = (splits_of(path, tmp_path, value, data=lines(tmp_path)) for value in (None, True))
    assert before.calibration.digest() == now.calibration.digest()
    ids_NT, mask_NT = (now.calibration.inputs[name] for name in ("input_ids", "attention_mask"))
    assert (ids_NT[:, 0] == BOS).all()
    assert (ids_NT.gather(1, mask_NT.sum(1, keepdim=True) - 1) == EOS).all()


def test_streams_of_token_ids_are_cut_alike_and_samples_stay_as_they_are(directory, tmp_path):
    path = directory()
    save_byte_tokenizer(path)
    ids = np.random.default_rng(0).integers(0, 256, 900)
    np.save(tmp_path / "stream.npy", ids)
    np.save(tmp_path / "samples.npy", ids.reshape(-1, 15))
    stream = splits_of(path, tmp_path, data=str(tmp_path / "stream.npy")).calibration.inputs["input_ids"]
    samples = splits_of(path, tmp_path, data=str(tmp_path / "samples.npy"))
    assert (stream[:, 0] == BOS).all()
    assert samples.special_tokens == ""
    assert torch.equal(stream[:, 1:], samples.calibration.inputs["input_ids"])


def test_windows_need_room_for_them(directory, tmp_path):
    path = directory()
    save_byte_tokenizer(path, ("<s>",), ("</s>",))
    with pytest.raises(
        UserError, match="sequence_length 2 leaves no token of .* inside <s> ... </s>; raise it"
    ):
        splits_of(path, tmp_path, sequence_length=2)
    np.save(tmp_path / "short.npy", np.arange(13))
    with pytest.raises(
        UserError, match=r"has 13 tokens, fewer than calibration.sequence_length 16 less 2 for <s> "
    ):
        splits_of(path, tmp_path, data=str(tmp_path / "short.npy"))
