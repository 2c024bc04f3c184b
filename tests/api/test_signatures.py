"""What `hpcmpq` exports, word for word: whoever changes a line of `signatures.txt` changes other people's programs."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import hpcmpq

GOLDEN = Path(__file__).with_name("signatures.txt")


def lines_of(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [name]
    if not inspect.isclass(value):
        return [f"{name}{inspect.signature(value)}"]
    if issubclass(value, Exception):
        return [f"{name}({value.__base__.__name__})"]
    fields = [f"{name}.{field}: {kind}" for field, kind in value.__annotations__.items() if field[0] != "_"]
    return [name, *fields, *(f"{name}.{member}" for member in members(value))]


def members(kind: type) -> list[str]:
    found = []
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") or name in kind.__annotations__:
            continue
        function = getattr(value, "__func__", value)
        found.append(f"{name}{inspect.signature(function)}" if callable(function) else name)
    return found


def public() -> dict[str, Any]:
    return {name: getattr(hpcmpq, name) for name in sorted(hpcmpq.__all__)}


def test_signatures_are_those_that_people_have_read():
    found = [line for name, value in public().items() for line in lines_of(name, value)]
    assert "\n".join(found) + "\n" == GOLDEN.read_text()


def documented() -> dict[str, Any]:
    found = {}
    for name, value in public().items():
        if inspect.isclass(value) and not issubclass(value, Exception):
            found[name] = value
            for member, inner in vars(value).items():
                function = (
                    getattr(inner, "fget", None)
                    or getattr(inner, "func", None)
                    or getattr(inner, "__func__", inner)
                )
                if not member.startswith("_") and callable(function):
                    found[f"{name}.{member}"] = function
        elif callable(value) and not inspect.isclass(value):
            found[name] = value
    return found


# What no example can show in a second: it measures the machine, or only says again what stands in a file.
WITHOUT_EXAMPLE = {"Run", "Run.time", "Run.quadratic", "Run.solution", "Run.config", "Quadratic.options"}


@pytest.mark.parametrize("name", documented())
def test_docstrings_have_arguments_errors_and_an_example(name: str):
    value = documented()[name]
    text = inspect.getdoc(value) or ""
    assert text, name
    assert ("Example:\n    >>> " in text) == (name not in WITHOUT_EXAMPLE)
    if inspect.isclass(value):
        assert all(f"\n    {field}: " in text for field in value.__annotations__ if field[0] != "_")
        return
    parameters = set(inspect.signature(value).parameters) - {"self", "cls", "run"}
    assert not [p for p in parameters if f"\n    {p}: " not in text and f"\n    **{p}: " not in text]


def test_names_that_are_none_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        hpcmpq.quantise  # noqa: B018
    assert set(hpcmpq.__all__) <= set(dir(hpcmpq))
