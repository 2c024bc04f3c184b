r"""Tasks in JSON lines on disk, read as questions with answers.

    multiple_choice   {"question": "2 + 2 =", "choices": ["3", "4"], "answer": 1}      the index or the text
    next_word         {"text": "The capital of France is Paris"}                       the last word is asked for
    classification    {"text": "I loved it", "label": "positive"}                      the index or the text

`prompt` is a template over the record's fields, such as ``"Q: {question}\nA:"``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.models.data.json_lines import read_records
from hpcmpq.settings import TaskConfig

PROMPTS = {"multiple_choice": "{question}", "next_word": "{text}", "classification": "{text}"}


@dataclass(frozen=True)
class Question:
    """One item of a task.

    Attributes:
        prompt: What the model reads.
        choices: What may follow; the word alone for ``next_word``, the labels for ``classification``.
        answer: Index of the right one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


def read_questions(task: TaskConfig) -> tuple[Question, ...]:
    """All questions of a task's file.

    Raises:
        UserError: With the line that is malformed, and what it should hold.
    """
    place = f"task {task.name} ({task.path})"
    path = Path(task.path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {place}: {error}; correct evaluation.tasks") from None
    questions = tuple(_questions(task, text, place))
    if not questions:
        raise UserError(f"{place} is empty; give one JSON object a line")
    return questions


def _questions(task: TaskConfig, text: str, place: str) -> Iterator[Question]:
    for where, record in read_records(text, place):
        if task.type == "next_word":
            text = _field(record, "text", str, where).rstrip()
            before, space, word = text.rpartition(" ")
            if not before:
                raise UserError(f"{where} has a text of one word; the last of several words is asked for")
            yield Question(_prompt(task, {**record, "text": before}, where), (space + word,), 0)
            continue
        if task.type == "multiple_choice":
            choices = tuple(map(str, _field(record, "choices", list, where)))
            answer = record.get("answer", record.get("label"))
        else:
            choices, answer = task.labels, _field(record, "label", (int, str), where)
        yield Question(_prompt(task, record, where), choices, _index(answer, choices, where))


def _field(record: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or value in ("", []):
        raise UserError(f"{where} has no field '{name}' (it has {', '.join(record)}); add or rename it")
    return value


def _index(answer: Any, choices: tuple[str, ...], where: str) -> int:
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    is_index = isinstance(answer, int) and not isinstance(answer, bool)
    if is_index and 0 <= answer < (len(choices) or answer + 1):
        return int(answer)
    known = ", ".join(map(repr, choices)) or "classes that the model numbers"
    raise UserError(f"{where} has the answer {answer!r}, which is none of {known} nor the index of one")


def _prompt(task: TaskConfig, record: dict[str, Any], where: str) -> str:
    template = task.prompt or PROMPTS[task.type]
    try:
        return template.format_map(record)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{where} does not fit the prompt {template!r}: {error} is no field of it (it has "
            f"{', '.join(record)}); set evaluation.tasks prompt"
        ) from None
