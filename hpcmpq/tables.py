"""Tables of variants by name: an entry of one, and what its ``module:attribute`` names."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from hpcmpq.errors import UserError

Entry = TypeVar("Entry")


def look_up(table: Mapping[str, Entry], name: str, kind: str) -> Entry:
    """The entry called `name`.

    Args:
        table: {name: entry}.
        name: As people type it.
        kind: What the table's entries are, for the message.

    Raises:
        UserError: If there is none; the message names those there are.

    Example:
        >>> look_up({"int4": 4}, "int4", "format")
        4
    """
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return table[name]


def named_by(place: str) -> Any:
    """What ``module:attribute`` names, imported now.

    Example:
        >>> named_by("math:pi")
        3.141592653589793
    """
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def table_name(text: str) -> str:
    """The spelling of a name in tables.

    Example:
        >>> table_name("compressed-tensors"), table_name("compressed_tensors")
        ('compressed_tensors', 'compressed_tensors')
    """
    return text.replace("-", "_")
