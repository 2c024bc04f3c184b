"""Files of JSON lines: one object a line, UTF-8 with or without a byte order mark."""

import json
from collections.abc import Iterator
from typing import Any

from hpcmpq.errors import UserError


def read_records(text: str, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Every record with its place for messages, such as "data.jsonl line 3"; empty lines are passed over.

    Only ``\n`` ends a line: strings in JSON may hold what Python's `splitlines` takes for an end, such as U+2028.

    Args:
        text: Without a byte order mark, as the encoding ``utf-8-sig`` reads it.
        place: Of the file, for messages.

    Raises:
        UserError: At the first line that is no JSON object, or whose text no file can hold.

    Example:
        >>> [record for _, record in read_records('{"text": "a\u2028b"}\n\n{"text": "c"}\n', "data.jsonl")]
        [{'text': 'a\u2028b'}, {'text': 'c'}]
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{place} line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {error}; each line must be an object") from None
        if not isinstance(record, dict):
            raise UserError(f"{where} is {type(record).__name__}; each line must be an object")
        if "\\u" in line:
            _check_characters(record, where)
        yield where, record


def holds_lines(text: str) -> bool:
    r"""Whether the first line that is not empty is a whole object.

    Example:
        >>> holds_lines('{"text": "a"}\n'), holds_lines('{\n"text": "a"}'), holds_lines('[{"text": "a"}]')
        (True, False, False)
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _check_characters(record: dict[str, Any], where: str) -> None:
    """Refuse half of a pair of surrogates, as a text that was cut inside an emoji has: UTF-8 cannot hold it."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(str(error.object)[error.start]):04x}"
        raise UserError(f"{where} holds {half}, half of a character; complete or remove it") from None
