"""A configuration as plain values, such as `plan.json` holds, and back without pydantic."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

from hpcmpq.settings.sections import Config

T = TypeVar("T")


def from_values(kind: type[T], values: Mapping[str, Any]) -> T:
    """A configuration, or a section of one, from what `to_values` gave, which was checked when it was made.

    Raises:
        ValueError: If a key is unknown, as in a plan of a newer version.
        TypeError: If one is missing.
    """
    made: T = _made(kind, values)
    return made


def _made(declared: Any, value: Any) -> Any:
    """A plain value as its declared type has it: lists as tuples, mappings as sections."""
    origin, args = get_origin(declared), get_args(declared)
    if dataclasses.is_dataclass(declared):
        types = {f.name: f.type for f in dataclasses.fields(declared)}
        if unknown := value.keys() - types.keys():
            raise ValueError(f"no setting is called {min(unknown)!r}")
        return declared(**{key: _made(types[key], item) for key, item in value.items()})  # type: ignore[operator]
    if origin is tuple:
        return tuple(_made(args[0], item) for item in value)
    if origin is Mapping:
        return {key: _made(args[1], item) for key, item in value.items()}
    return value


def to_values(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values, with every default filled in."""
    return dataclasses.asdict(config)
