"""Names of formats, methods, targets and other choices: with hyphens and underscores alike.

Every table of ours spells its names with underscores; a hyphen that people type for one is read as one here, in configs
(`parse_config`) and on the command line (`hpcmpq.cli.arguments`), so that nothing else needs to know of it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from hpcmpq.tables import table_name

NAMES = {
    "formats",
    "target",
    "gpu",
    "groups.kv_cache",
    "sensitivity.method",
    "solver.name",
    "solver.fixed",
    "solver.forbidden",
}
"""Keys whose values are names in tables; other choices are `Literal` types."""

KEYED_BY_NAMES = {"budgets", "quantizer.checkpoints"}
"""Mappings whose keys are names."""


def with_table_names(values: Mapping[str, Any], kind: type, place: str = "") -> dict[str, Any]:
    """The same values of the dataclass `kind` with every name in it as tables spell it.

    Of two keys that are then the same, the name of the second stays as it is, to be refused.
    """
    types = {f.name: f.type for f in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        where, declared = f"{place}{key}", types.get(key)
        entry = next((arg for arg in get_args(declared) if dataclasses.is_dataclass(arg)), None)
        if dataclasses.is_dataclass(declared) and isinstance(value, Mapping):
            value = with_table_names(value, declared, f"{where}.")  # type: ignore[arg-type]
        elif entry is not None and isinstance(value, list | tuple):
            value = [
                with_table_names(item, entry, f"{where}.") if isinstance(item, Mapping) else item  # type: ignore[arg-type]
                for item in value
            ]
        elif where in KEYED_BY_NAMES and isinstance(value, Mapping):
            value = _keyed(value)
        elif where in NAMES or _is_choice(declared):
            value = _named(value)
        found[key] = value
    return found


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return table_name(value)
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    return [_named(item) for item in value] if isinstance(value, list | tuple) else value


def _keyed(values: Mapping[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in values.items():
        name = table_name(key) if isinstance(key, str) else key
        found[key if name in found or (name != key and name in values) else name] = value
    return found


def _is_choice(declared: Any) -> bool:
    return get_origin(declared) is Literal or any(get_origin(arg) is Literal for arg in get_args(declared))
