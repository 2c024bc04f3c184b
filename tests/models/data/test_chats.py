"""Conversations become what the chat template beside the model makes of them, special tokens once."""

import json
from pathlib import Path

import pytest

from hpcmpq.errors import UserError
from hpcmpq.models.data.splits import Splits, load_splits
from hpcmpq.settings import CalibrationConfig, Config, EvaluationConfig, ModelConfig
from tests.models.byte_tokenizer import BOS, EOS, VOCAB, save_byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if tools %}{{ raise_exception('knows no tools') }}{% endif %}"
)
CHATS = [
    [{"role": "user", "content": f"{n} squared?"}, {"role": "assistant", "content": f"It is {n * n}."}]
    for n in range(40)
]


def directory(model_directory, name: str, template: str | None = TEMPLATE, start=("<s>",)) -> Path:
    path = model_directory(name)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": VOCAB}))
    save_byte_tokenizer(path, start)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path


def splits_of(path: Path, records: list[dict], **values) -> Splits:
    data = path.parent / "chats.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"num_samples": 8, "held_out": 2, "sequence_length": 16, **values}
    calibration = CalibrationConfig(data=str(data), **settings)
    return load_splits(
        Config(ModelConfig(path=str(path)), calibration, evaluation=EvaluationConfig(num_samples=2))
    )


def by_hand(chat: list[dict]) -> list[int]:
    """Tokens of a conversation by the template above, without what it begins with."""
    return [
        token for turn in chat for token in [*f"[{turn['role']}]{turn['content']}".encode("latin-1"), EOS]
    ]


def letters(splits: Splits) -> list[list[int]]:
    """Samples as the bytes that the tokenizer's letters stand for."""
    from tokenizers import pre_tokenizers

    ordinary = sorted(pre_tokenizers.ByteLevel.alphabet())  # printable ASCII stands for itself
    rows = splits.calibration.inputs["input_ids"].tolist()
    return [[t if t >= 256 else {"Ġ": 32}.get(ordinary[t], ord(ordinary[t])) for t in row] for row in rows]


@pytest.mark.parametrize("start", [("<s>",), ()])
def test_windows_are_cut_from_what_the_template_writes(model_directory, start):
    path = directory(model_directory, "llama", start=start)
    splits = splits_of(path, [{"messages": chat} for chat in CHATS])
    first = [] if start else [BOS]  # the template's, which no window begins with otherwise
    stream = [token for chat in CHATS for token in [*first, *by_hand(chat)]]
    width = 16 - len(start)
    windows = {tuple(stream[k : k + width]) for k in range(0, len(stream), width)}
    found = letters(splits)
    assert len(found) == 8
    for row in found:
        assert row[: len(start)] == [BOS] * len(start)
        assert tuple(row[len(start) :]) in windows


def test_texts_between_conversations_are_set_apart_as_ever(model_directory):
    path = directory(model_directory, "llama")
    records = [{"text": "A text."}, {"messages": CHATS[1]}, {"text": "Another."}, {"messages": CHATS[2]}]
    splits = splits_of(path, records, num_samples=2, held_out=1, sequence_length=12)
    stream = [*b"A text.", EOS, *by_hand(CHATS[1]), *b"Another.", EOS, *by_hand(CHATS[2])]
    windows = {(BOS, *stream[k : k + 11]) for k in range(0, len(stream), 11)}
    assert {tuple(row) for row in letters(splits)} <= windows


def test_a_classifier_reads_a_conversation_with_its_special_tokens_once(model_directory):
    path = directory(model_directory, "bert_classifier")
    records = [{"messages": chat, "label": n % 2} for n, chat in enumerate(CHATS)]
    splits = splits_of(path, [*records, {"text": "plain", "label": 0}], sequence_length=60, num_samples=37)
    mask = splits.calibration.inputs["attention_mask"].sum(1).tolist()
    rows = [row[:length] for row, length in zip(letters(splits), mask, strict=True)]
    expected = [[BOS, *by_hand(chat)] for chat in CHATS] + [[BOS, *b"plain"]]
    assert all(row in expected for row in rows)


@pytest.mark.parametrize(
    ("record", "template", "message"),
    [
        (
            {"messages": CHATS[0]},
            None,
            r"chats.jsonl line 1 holds a conversation, and .* no chat template \(chat_template.jinja\); put",
        ),
        (
            {"messages": "hi"},
            TEMPLATE,
            "line 1 has a field 'messages' that is no list of objects with 'role'",
        ),
        ({"messages": []}, TEMPLATE, "that is no list of objects"),
        ({"messages": [{"content": "hi"}]}, TEMPLATE, "that is no list of objects"),
        ({"messages": CHATS[0], "tools": {}}, "{{ missing.attribute.deep }}", "cannot write out .* line 1: "),
        ({"messages": CHATS[0], "tools": [{"name": "f"}]}, TEMPLATE, "line 1: .*knows no tools"),
        ({"messages": CHATS[0], "tools": "f"}, TEMPLATE, "'tools' that is no list"),
    ],
)
def test_what_cannot_be_written_out_is_one_sentence(model_directory, record, template, message):
    path = directory(model_directory, "llama", template)
    with pytest.raises(UserError, match=message) as told:
        splits_of(path, [record])
    assert "\n" not in str(told.value)
