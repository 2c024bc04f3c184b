"""Samples from every kind of source, disjoint splits, and what is said about wrong data."""

import dataclasses
import json
import logging
import random
import string
import sys

import numpy as np
import pytest
import torch

from hpcmpq.errors import UserError
from hpcmpq.models.data.sources import Documents, read_source
from hpcmpq.models.data.splits import IGNORED, Samples, Splits, load_splits
from hpcmpq.settings import CalibrationConfig, Config, EvaluationConfig, ModelConfig

TEXT = "".join(random.Random(0).choices(string.ascii_lowercase, k=3000))


def splits_of(model, data, evaluation=None, objective="kl", import_paths=(), **values) -> Splits:
    settings = {"num_samples": 8, "held_out": 4, "sequence_length": 16} | values
    num_evaluation = settings.pop("num_evaluation", 6)
    model_config = ModelConfig(factory=model) if ":" in str(model) else ModelConfig(path=str(model))
    config = Config(
        model=model_config,
        calibration=CalibrationConfig(data=str(data), **settings),
        evaluation=EvaluationConfig(
            data=None if evaluation is None else str(evaluation), num_samples=num_evaluation
        ),
        objective=objective,
    )
    return load_splits(config, import_paths)


def parts(splits: Splits) -> list[Samples]:
    return [splits.calibration, splits.held_out, splits.evaluation]


def hashes(splits: Splits) -> list[str]:
    return [content for part in parts(splits) for content in part.content_hashes()]


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Function that writes a module of factories and returns its import path."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source: str) -> list[str]:
        (tmp_path / "hpcmpq_test_data.py").write_text("import numpy as np, torch\n" + source)
        return [str(tmp_path)]

    yield write
    sys.modules.pop("hpcmpq_test_data", None)


def fails(message: str, *args, **kwargs) -> None:
    with pytest.raises(UserError, match=message) as caught:
        splits_of(*args, **kwargs)
    assert "\n" not in str(caught.value)


# Files.


def test_only_a_line_break_ends_a_line_of_json(model_directory, tmp_path):
    """What `str.splitlines` takes for ends may stand in a JSON string; editors put a byte order mark first."""
    texts = [
        f"{letter}{end}b{letter * 40}"
        for letter, end in zip("acdefg", "\u2028\u2029\x85\x0b\x0c\x1c", strict=True)
    ]
    records = [json.dumps({"text": text}, ensure_ascii=ord(text[1]) < 0x20) for text in texts]
    data = tmp_path / "docs.jsonl"
    data.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(records).encode())
    source = read_source(str(data), "calibration.data", 8)
    assert source == Documents(tuple(texts))


def test_a_plain_text_has_no_byte_order_mark_and_one_sample_a_line(model_directory, tmp_path):
    data = tmp_path / "text.txt"
    data.write_bytes("\ufeffone\u2028line\nanother\x85one\nc\n".encode())
    splits = splits_of(
        model_directory("bert"), data, objective="mse", num_samples=1, held_out=1, num_evaluation=1
    )
    lengths = [int(n) for part in parts(splits) for n in part.inputs["attention_mask"].sum(1)]
    assert sorted(lengths) == [1, len("one\u2028line".encode()), len("another\x85one".encode())]


# Language models.


def test_bytes_are_the_tokens_of_a_byte_model_without_tokenizer(model_directory, text_file):
    splits = splits_of(model_directory("llama"), text_file)
    assert [len(part) for part in parts(splits)] == [8, 4, 6]
    content = TEXT.encode()
    for part in parts(splits):
        assert part.labelled
        for ids, targets in zip(part.inputs["input_ids"], part.targets, strict=True):
            window = bytes(ids.tolist())
            start = content.index(window)
            assert start % 16 == 0
            assert bytes(targets.tolist()) == content[start + 1 : start + 17]


def test_splits_are_disjoint_and_depend_on_the_seed_alone(model_directory, text_file):
    path = model_directory("llama")
    splits = splits_of(path, text_file)
    assert len(set(hashes(splits))) == 18
    assert hashes(splits_of(path, text_file)) == hashes(splits)
    assert hashes(splits_of(path, text_file, seed=1)) != hashes(splits)
    assert hashes(splits_of(path, text_file, evaluation=text_file)) == hashes(splits)


def test_window_at_the_end_of_the_stream_has_no_last_target(model_directory, tmp_path):
    data = tmp_path / "ids.npy"
    np.save(data, np.arange(64, dtype=np.uint16))
    splits = splits_of(model_directory("llama"), data, num_samples=2, held_out=1, num_evaluation=1)
    ids = torch.cat([part.inputs["input_ids"] for part in parts(splits)])
    targets = torch.cat([part.targets for part in parts(splits)])
    expected = ids + 1
    assert expected.max() == 64
    expected[expected == 64] = IGNORED
    assert torch.equal(targets, expected)


def test_evaluation_data_of_another_file_drops_what_calibration_saw(
    model_directory, text_file, tmp_path, caplog
):
    # 187 whole windows; the other file starts with the same ones and adds three of its own.
    other = tmp_path / "other.txt"
    other.write_text(TEXT[: 187 * 16] + "".join(chr(65 + i % 26) for i in range(48)))
    with caplog.at_level(logging.WARNING):
        splits = splits_of(
            model_directory("llama"), text_file, other, num_samples=150, held_out=30, num_evaluation=60
        )
    assert splits.num_dropped == 180
    assert "dropped 180 samples whose content is in an earlier set" in caplog.text
    assert "evaluation has 10 samples instead of 60" in caplog.text
    assert len(splits.evaluation) == 10
    assert len(set(hashes(splits))) == 190


def test_evaluation_data_that_calibration_saw_entirely(model_directory, text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    fails(
        "none of the 187 samples of evaluation.data .*other.txt is left: 187 with repeated content; evaluate on",
        model_directory("llama"), text_file, other, num_samples=180, held_out=7,
    )  # fmt: skip


def test_repeated_windows_are_used_once(model_directory, tmp_path):
    data = tmp_path / "repeats.txt"
    data.write_text(TEXT[: 30 * 16] * 2)
    splits = splits_of(model_directory("llama"), data, num_samples=20, held_out=5, num_evaluation=5)
    assert len(set(hashes(splits))) == 30
    fails(r"960 tokens in 60 whole samples of 16 \(30 with repeated content\); 496 tokens in 31 samples",
          model_directory("llama"), data, num_samples=25, held_out=5)  # fmt: skip


def save_tokenizer(path, eos: bool = True) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {
        word: number for number, word in enumerate(["[UNK]", "</s>", "[PAD]", "one", "two", "three", "four"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"} | ({"eos_token": "</s>"} if eos else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


@pytest.mark.parametrize("eos", [True, False])
def test_documents_are_joined_with_the_end_of_text_token(model_directory, tmp_path, eos: bool):
    path = model_directory("llama")
    save_tokenizer(path, eos)
    data = tmp_path / "docs.jsonl"
    data.write_text('{"text": "one two three"}\n\n{"text": "four", "id": 7}\n{"text": "two two"}\n')
    splits = splits_of(path, data, num_samples=1, held_out=1, sequence_length=2, num_evaluation=9)
    windows = {tuple(ids) for part in parts(splits) for ids in part.inputs["input_ids"].tolist()}
    assert windows == ({(3, 4), (5, 1), (6, 1), (4, 4)} if eos else {(3, 4), (5, 6), (4, 4)})


def test_array_of_samples_gets_next_tokens_as_targets(model_directory, tmp_path):
    data = tmp_path / "ids.npy"
    np.save(data, np.arange(200).reshape(20, 10))
    splits = splits_of(model_directory("llama"), data)
    ids, targets = splits.calibration.inputs["input_ids"], splits.calibration.targets
    assert ids.shape == (8, 10)
    assert torch.equal(targets[:, :-1], ids[:, 1:])
    assert (targets[:, -1] == IGNORED).all()


def test_padding_of_a_batch_does_not_count(model_directory, module):
    paths = module(
        "def batches():\n"
        "    for k in range(9):\n"
        "        ids = torch.arange(12).reshape(2, 6) + 12 * k\n"
        "        mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])\n"
        "        yield {'input_ids': ids, 'attention_mask': mask}\n"
        "def labelled():\n"
        "    return [b | {'labels': b['input_ids'].clone().fill_(5)} for b in batches()]\n"
    )
    splits = splits_of(model_directory("llama"), "hpcmpq_test_data:batches", import_paths=paths)
    for ids, mask, targets in zip(
        *splits.calibration.inputs.values(), splits.calibration.targets, strict=True
    ):
        count = int(mask.sum())
        assert targets.tolist() == [*ids[1:count].tolist(), *[IGNORED] * (7 - count)]
    labelled = splits_of(model_directory("llama"), "hpcmpq_test_data:labelled", import_paths=paths)
    assert {tuple(row) for row in labelled.calibration.targets.tolist()} == {
        (5, 5, 5, IGNORED, IGNORED, IGNORED), (5, 5, 5, 5, 5, IGNORED),
    }  # fmt: skip


HALF_LABELLED = (
    "def batches():\n"
    "    ids = torch.arange(240).reshape(40, 6)\n"
    "    labels = ids.clone()\n"
    "    labels[::2] = -100\n"  # a prompt alone
    "    labels[1::2, :4] = -100\n"  # a prompt and two tokens of its answer
    "    return {'input_ids': ids, 'labels': labels}\n"
    "def prompts():\n"
    "    return batches() | {'labels': torch.full((40, 6), -100)}\n"
)


@pytest.mark.parametrize("objective", ["kl", "ce"])
def test_samples_of_which_no_position_counts_are_left_out(model_directory, module, caplog, objective: str):
    paths, model = module(HALF_LABELLED), model_directory("llama")
    with caplog.at_level(logging.WARNING):
        splits = splits_of(model, "hpcmpq_test_data:batches", objective=objective, import_paths=paths)
    assert [len(part) for part in parts(splits)] == [8, 4, 6]
    for part in parts(splits):
        assert ((part.targets != IGNORED).sum(1) == 2).all()
        assert (part.inputs["input_ids"][:, 0] % 12 == 6).all()
    assert splits.num_uncounted > 0 and splits.num_dropped == 0
    assert f"left out {splits.num_uncounted} samples without a position that counts" in caplog.text
    fails(r"has 240 tokens in 40 whole samples of 6 \(40 without a position that counts\)",
          model, "hpcmpq_test_data:prompts", import_paths=paths)  # fmt: skip
    fails("none of the 40 samples of evaluation.data .* is left: 40 without a position that counts; evaluate",
          model, "hpcmpq_test_data:batches", "hpcmpq_test_data:prompts", import_paths=paths)  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        f"def data():\n    return {TEXT!r}\n",
        f"def data():\n    yield from ({TEXT!r}[k : k + 100] for k in range(0, 3000, 100))\n",
        f"def data():\n    return np.frombuffer({TEXT!r}.encode(), dtype=np.uint8)\n",
        f"def data():\n    return torch.tensor(list({TEXT!r}.encode()))\n",
        "def data():\n    while True:\n        yield torch.randint(256, (3, 16))\n",
        "def data():\n    return [tuple(torch.randint(256, (2, 3, 16))) for _ in range(20)]\n",
        "def data():\n    ids = torch.randint(256, (30, 16))\n    return ids, ids\n",
        "def data():\n    pairs = torch.utils.data.TensorDataset(*torch.randint(256, (2, 30, 16)))\n"
        "    return torch.utils.data.DataLoader(pairs, batch_size=7)\n",
    ],
    ids=["text", "texts", "array", "tensor", "endless", "pairs", "one pair", "data loader"],
)
def test_factories_of_every_kind(model_directory, module, source: str):
    splits = splits_of(model_directory("llama"), "hpcmpq_test_data:data", import_paths=module(source))
    assert [len(part) for part in parts(splits)] == [8, 4, 6]
    assert splits.calibration.inputs["input_ids"].shape == (8, 16)
    assert splits.calibration.inputs["input_ids"].dtype == torch.int64
    assert splits.calibration.targets.shape == (8, 16)


# Other models.


def test_encoder_gets_a_padded_sample_per_line(model_directory, tmp_path):
    data = tmp_path / "lines.txt"
    data.write_text("\n\n".join("abcdefghijklmnopqrstuvwxyz"[: 3 + k] for k in range(20)))
    splits = splits_of(model_directory("bert"), data)
    inputs, targets = splits.calibration.inputs, splits.calibration.targets
    assert inputs["input_ids"].shape == (8, 16)
    assert targets is not None
    assert torch.equal(targets == IGNORED, inputs["attention_mask"] == 0)
    assert not splits.calibration.labelled
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        assert bytes(ids[mask == 1].tolist()).decode() == "abcdefghijklmnop"[: int(mask.sum())]
        assert not ids[mask == 0].any()


def test_samples_are_padded_to_the_longest_that_was_chosen(model_directory, tmp_path):
    """The only long text is in one of the three sets, or in none."""
    data, other = tmp_path / "lines.txt", tmp_path / "other.txt"
    texts = [f"line {number}" for number in range(30)]
    data.write_text("\n".join(["a text that is much longer", *texts]))
    widths = set()
    for seed in range(12):
        splits = splits_of(model_directory("bert"), data, seed=seed, sequence_length=24, objective="mse")
        widths |= {tuple(part.inputs["input_ids"].shape[1] for part in parts(splits))}
        for part in parts(splits):
            assert part.inputs["attention_mask"].any(0).all()
    assert {7, 24} == {width for each in widths for width in each}
    assert all(each.count(24) <= 1 for each in widths)
    # The same text is the same sample, whatever the longest text beside it.
    other.write_text("\n".join(["another text that is longer", *texts]))
    splits = splits_of(
        model_directory("bert"), data, other, num_samples=20, sequence_length=24, objective="mse"
    )
    assert splits.num_dropped > 0
    rows = [row[row != 0].tolist() for part in parts(splits) for row in part.inputs["input_ids"]]
    assert len({tuple(row) for row in rows}) == len(rows)


def test_sequence_classifier_takes_labels_from_jsonl(model_directory, tmp_path):
    path = model_directory("bert_classifier")
    save_tokenizer(path)
    data = tmp_path / "labelled.jsonl"
    words = ["one", "two", "three"]
    records = [{"text": " ".join([words[k % 3]] * (k + 1)), "label": k % 3} for k in range(16)]
    data.write_text("\n".join(map(json.dumps, records)))
    splits = splits_of(path, data, objective="ce", num_evaluation=4)
    assert splits.calibration.labelled
    for part in parts(splits):
        assert torch.equal(part.inputs["input_ids"][:, 0] - 3, part.targets)
    data.write_text("\n".join(json.dumps({"text": record["text"]}) for record in records))
    assert splits_of(path, data, num_evaluation=4).calibration.targets is None
    fails("objective ce needs labels and the data have none", path, data, objective="ce", num_evaluation=4)


def test_labels_are_numbers_or_names_of_the_models_classes(model_directory, tmp_path):
    path = model_directory("bert_classifier")
    save_tokenizer(path)
    data = tmp_path / "labelled.jsonl"

    def write(labels: list[object]) -> None:
        texts = [" ".join(["one"] * (k + 1)) for k in range(len(labels))]
        given = [{} if label is None else {"label": label} for label in labels]
        lines = [{"text": text} | label for text, label in zip(texts, given, strict=True)]
        data.write_text("\n".join(map(json.dumps, lines)))

    write([["LABEL_0", "LABEL_2"][k % 2] for k in range(16)])
    by_name = splits_of(path, data, objective="ce", num_evaluation=4).calibration.targets
    write([[0, 2][k % 2] for k in range(16)])
    assert torch.equal(by_name, splits_of(path, data, objective="ce", num_evaluation=4).calibration.targets)
    assert set(by_name.tolist()) == {0, 2}
    write(["good"] * 16)
    fails("has the label 'good', and id2label .* names only LABEL_0, LABEL_1, LABEL_2", path, data)
    write([7] * 16)
    fails("holds class 7, but the model .* has classes 0 to 2", path, data)
    write([1] * 8 + [None] * 8)
    fails("labels in some lines and none in others, such as line 9", path, data)
    write([0.5] * 16)
    fails("line 1 has label 0.5; give a class's number or name", path, data)


def test_images_of_an_array_and_of_a_factory(model_directory, tmp_path, module):
    images = np.random.default_rng(0).normal(size=(20, 3, 16, 16))
    data = tmp_path / "images.npy"
    np.save(data, images)
    splits = splits_of(model_directory("vit"), data)
    assert splits.calibration.inputs["pixel_values"].shape == (8, 3, 16, 16)
    assert splits.calibration.inputs["pixel_values"].dtype == torch.float32  # the model's
    assert splits.calibration.targets is None
    paths = module("def data():\n    return torch.randn(20, 3, 16, 16), torch.arange(20) % 4\n")
    labelled = splits_of(model_directory("vit"), "hpcmpq_test_data:data", import_paths=paths, objective="ce")
    assert labelled.calibration.targets.shape == (8,)


def test_factory_model_gets_inputs_as_they_are(module):
    paths = module("def data():\n    return torch.arange(60.0).reshape(20, 3), torch.arange(20)\n")
    splits = splits_of("some.module:model", "hpcmpq_test_data:data", import_paths=paths)
    for part in parts(splits):
        assert torch.equal(part.inputs["input"][:, 0], 3.0 * part.targets)


# What is said about wrong data.


def test_missing_and_empty_files(model_directory, tmp_path):
    path = model_directory("llama")
    fails("there is no file .*nothing.txt; correct calibration.data", path, tmp_path / "nothing.txt")
    for name in ("empty.txt", "empty.jsonl", "empty.npy", "blank.txt", "blank.jsonl"):
        (tmp_path / name).write_text("" if name.startswith("empty") else " \n\n")
        fails(f"calibration.data .*{name} is empty; give a file", path, tmp_path / name)


def test_missing_evaluation_file(model_directory, text_file, tmp_path):
    fails(
        "there is no file .*gone.txt; correct evaluation.data",
        model_directory("llama"),
        text_file,
        tmp_path / "gone.txt",
    )


def test_text_shorter_than_one_sample(model_directory, tmp_path):
    (tmp_path / "short.txt").write_text("ten bytes!")
    fails("short.txt has 10 tokens, fewer than calibration.sequence_length 16; lower it or give more text",
          model_directory("llama"), tmp_path / "short.txt")  # fmt: skip


def test_text_shorter_than_needed(model_directory, tmp_path):
    (tmp_path / "short.txt").write_text(TEXT[:100])
    fails(
        r"short.txt has 96 tokens in 6 whole samples of 16; 208 tokens in 13 samples are needed "
        r"\(calibration 8, held out 4, the rest for evaluation\); "
        r"lower calibration.num_samples or calibration.held_out or "
        r"calibration.sequence_length, or give more data",
        model_directory("llama"), tmp_path / "short.txt",
    )  # fmt: skip


def test_too_few_samples_of_a_classifier(model_directory, tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).normal(size=(5, 3, 16, 16)))
    fails("few.npy has 5 samples; 13 are needed", model_directory("vit"), tmp_path / "few.npy")


def test_sequence_longer_than_the_model(model_directory, text_file, tmp_path):
    path = model_directory("llama")
    fails(
        "calibration.sequence_length 65 is more than the model's 64 positions",
        path,
        text_file,
        sequence_length=65,
    )
    np.save(tmp_path / "long.npy", np.zeros((20, 65), dtype=int))
    fails("has samples of 65 tokens, more than the model's 64 positions", path, tmp_path / "long.npy")


@pytest.mark.parametrize("token", [256, -1])
def test_token_outside_the_vocabulary(model_directory, tmp_path, token: int):
    np.save(tmp_path / "ids.npy", np.array([1, 2, token] * 200))
    fails(f"holds token id {token} but the model's vocabulary has ids 0 to 255",
          model_directory("llama"), tmp_path / "ids.npy")  # fmt: skip


def test_vocabulary_without_tokenizer(model_directory, text_file):
    path = model_directory("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    fails(
        "has no tokenizer for calibration.data .* and its vocabulary of 300 is not 256 bytes", path, text_file
    )


def test_damaged_tokenizer(model_directory, text_file):
    path = model_directory("llama")
    (path / "tokenizer.json").write_text("{}")
    fails("cannot load the tokenizer in", path, text_file)


def test_jsonl_errors_name_the_line(model_directory, tmp_path):
    path, data = model_directory("llama"), tmp_path / "docs.jsonl"
    data.write_text('{"text": "a"}\n{"body": "b", "id": 1}\n')
    fails(r"docs.jsonl line 2 has no string field 'text' or list 'messages' \(it has body, id\)", path, data)
    data.write_text('{"text": "a"}\n\n["b"]\n')
    fails("docs.jsonl line 3 is list; each line must be an object", path, data)
    data.write_text('{"text": "a"}\n{"text": \n')
    fails("docs.jsonl line 2 is not JSON", path, data)


def test_data_of_the_wrong_kind(model_directory, text_file, tmp_path):
    fails(
        "is text, which this model does not read; give .npy or .npz arrays", model_directory("vit"), text_file
    )
    np.save(tmp_path / "floats.npy", np.ones((20, 16)))
    fails("this model takes integer token ids", model_directory("llama"), tmp_path / "floats.npy")
    np.save(tmp_path / "cube.npy", np.zeros((20, 4, 4), dtype=int))
    fails(
        r"token ids must be \[tokens\] or \[samples, tokens\]",
        model_directory("llama"),
        tmp_path / "cube.npy",
    )
    images = np.ones((20, 3, 16, 16))
    images[3, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", images)
    fails("nan.npy holds NaN or infinite values", model_directory("vit"), tmp_path / "nan.npy")
    (tmp_path / "text.npy").write_text("not an array")
    fails("text.npy is not a readable .npy array", model_directory("llama"), tmp_path / "text.npy")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    fails(r"latin.txt is not UTF-8 text \(byte 3\)", model_directory("llama"), tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def data():\n    return ''\n", "returned an empty text"),
        ("def data():\n    return 3\n", "returned int; return a text"),
        ("def data():\n    return []\n", "returned no batches"),
        ("def data():\n    return [3]\n", "yielded int; a batch is a tensor"),
        ("def data():\n    return [torch.zeros(2, 3), torch.zeros(2, 4)]\n", "batches of different shapes"),
        ("def data():\n    return [{'a': torch.ones(2)}, {'b': torch.ones(2)}]\n", "different tensors"),
        ("def data():\n    return {'a': torch.zeros(2), 'b': torch.zeros(3)}\n", "differ in samples"),
        ("def data():\n    return torch.zeros(20, 3), torch.zeros(20, dtype=int)[:4]\n", "gives 4 targets"),
        ("def data():\n    return torch.zeros(0, 3)\n", r"empty array of shape \[0, 3\]"),
        ("def data():\n    raise OSError('disk')\n", "raised OSError: disk"),
        ("def other():\n    pass\n", "has no function 'data'"),
    ],
)  # fmt: skip
def test_factories_that_fail(module, source: str, message: str):
    fails(message, "some.module:model", "hpcmpq_test_data:data", import_paths=module(source))


# Named arrays.


def save_images(path, **arrays) -> None:
    generator = np.random.default_rng(0)
    images = {
        "pixel_values": generator.normal(size=(20, 3, 16, 16)).astype(np.float32),
        "labels": np.arange(20) % 2,
    }
    np.savez(path, **{name: array for name, array in {**images, **arrays}.items() if array is not None})


def test_labelled_images_of_an_npz_file(model_directory, tmp_path):
    path, data = model_directory("vit"), tmp_path / "images.npz"
    save_images(data)
    splits = splits_of(path, data, objective="ce")
    arrays = np.load(data)
    for part in parts(splits):
        assert part.labelled
        for image, label in zip(part.inputs["pixel_values"], part.targets, strict=True):
            [place] = np.flatnonzero((arrays["pixel_values"] == image.numpy()).all((1, 2, 3)))
            assert arrays["labels"][place] == label
    save_images(data, labels=None)
    assert not splits_of(path, data).calibration.labelled
    fails("objective ce needs labels .* an array `labels`", path, data, objective="ce")


def test_masked_tokens_of_an_npz_file_and_separate_evaluation_data(model_directory, tmp_path):
    path = model_directory("llama")
    generator = np.random.default_rng(0)
    for name in ("calibration", "evaluation"):
        ids_NT = generator.integers(0, 256, (20, 16))
        mask_NT = np.arange(16) < generator.integers(8, 17, (20, 1))
        np.savez_compressed(tmp_path / f"{name}.npz", input_ids=ids_NT, attention_mask=mask_NT)
    splits = splits_of(path, tmp_path / "calibration.npz", tmp_path / "evaluation.npz")
    for part in parts(splits):
        ids_NT, mask_NT = part.inputs["input_ids"], part.inputs["attention_mask"]
        following = torch.where(mask_NT[:, 1:] == 1, ids_NT[:, 1:], IGNORED)
        assert torch.equal(part.targets[:, :-1], following)


def test_arrays_of_a_factory_s_model_are_named_as_its_arguments(tmp_path):
    np.savez(tmp_path / "data.npz", input=np.random.default_rng(0).normal(size=(20, 3)), labels=np.arange(20))
    splits = splits_of("some.module:model", tmp_path / "data.npz")
    assert set(splits.calibration.inputs) == {"input"} and splits.calibration.labelled


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixel_values": None}, "holds no inputs"),
        ({"pixel_values": None, "images": np.ones((20, 3, 16, 16))}, "'images', which the model does not take"),
        ({"pixel_values": None, "interpolate_pos_encoding": np.ones(20)}, "no array 'pixel_values'"),
        ({"labels": np.arange(19)}, "arrays of different lengths: pixel_values 20, labels 19"),
        ({"labels": np.arange(20) / 2}, "array 'labels' holds float64 values; give integer classes"),
        ({"labels": np.full(20, 4)}, "holds class 4, but the model .* classes 0 to 3"),
        ({"labels": np.array(["cat"] * 20)}, "array 'labels' holds <U3 values; give numbers"),
        ({"labels": np.array([{}] * 20)}, "not a readable .npz file of numbers: Object arrays"),
        ({"labels": np.array(1)}, "array 'labels' is a single number"),
        ({"pixel_values": np.ones((20, 3, 16, 16), np.uint8)}, "array 'pixel_values' holds integers; give floats"),
        ({"pixel_values": np.full((20, 3, 16, 16), np.nan)}, "array 'pixel_values' holds NaN or infinite"),
        ({"pixel_values": np.ones((0, 3, 16, 16)), "labels": None}, "array 'pixel_values' .* give one with samples"),
    ],
)  # fmt: skip
def test_wrong_arrays_of_an_npz_file(model_directory, tmp_path, arrays, message: str):
    save_images(tmp_path / "images.npz", **arrays)
    fails(f"images.npz .*{message}", model_directory("vit"), tmp_path / "images.npz")


def test_damaged_and_nameless_npz_files(model_directory, tmp_path):
    path, data = model_directory("vit"), tmp_path / "images.npz"
    save_images(data)
    whole = data.read_bytes()
    flipped = bytearray(whole)
    flipped[1000] ^= 1
    for content in (b"not an archive", whole[:1000], bytes(flipped)):
        data.write_bytes(content)
        fails("images.npz is not a readable .npz file", path, data)
    np.savez(data, np.ones((20, 3, 16, 16)), labels=np.zeros(20, dtype=int))
    fails(r"an array without a name \(arr_0\)", path, data)
    np.savez(data, input_ids=np.ones((20, 16)))
    fails("array 'input_ids' holds floats; give integers", model_directory("llama"), data)


# Samples.


def test_samples_can_be_cut_moved_and_hashed():
    samples = Samples({"input": torch.arange(12.0).reshape(4, 3)}, torch.arange(4), labelled=True)
    assert len(samples) == 4
    assert len(samples[1:3]) == 2
    assert samples[-1].inputs["input"].tolist() == [[9.0, 10.0, 11.0]]
    assert samples[[3, 0]].targets.tolist() == [3, 0]
    assert samples[2].labelled
    assert [part.targets.tolist() for part in samples] == [[0], [1], [2], [3]]
    assert [part.targets.tolist() for part in samples.passes(3)] == [[0, 1, 2], [3]]
    assert [part.targets.tolist() for part in samples.passes(2, 1, 4)] == [[1, 2], [3]]
    assert not list(samples.passes(2, 4))
    with pytest.raises(IndexError, match="sample 4 of 4"):
        samples[4]
    content = samples.content_hashes()
    assert len(set(content)) == 4
    assert samples[2:].content_hashes() == content[2:]
    assert samples.to("cpu").content_hashes() == content
    assert dataclasses.replace(samples, inputs={"x": samples.inputs["input"]}).content_hashes() != content
    double = {"input": samples.inputs["input"].double()}
    assert dataclasses.replace(samples, inputs=double).content_hashes() != content
