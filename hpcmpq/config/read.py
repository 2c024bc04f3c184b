"""YAML to a validated `Config`."""

import dataclasses
from pathlib import Path
from typing import Any

from hpcmpq.config.checks import check_keys, check_plain, check_values
from hpcmpq.config.names import with_table_names
from hpcmpq.errors import UserError
from hpcmpq.settings import Config, is_factory
from hpcmpq.targets.gpus import menu


def read_config(path: Path) -> Config:
    """The validated configuration in a YAML file; relative paths in it are relative to the file.

    Raises:
        UserError: If the file cannot be read, or a key or value is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from None
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}; check the path") from None
    values = values_of(text, str(path))
    return resolve_paths(parse_config(values, str(path)), Path(path).resolve().parent)


def values_of(text: str, source: str) -> dict[str, Any]:
    """Plain values of YAML text.

    Raises:
        UserError: If it is no YAML mapping, or one key stands twice in a mapping of it.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[str | int, int] = {}
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                line = key.start_mark.line + 1
                name = key.value if isinstance(key, yaml.ScalarNode) else line
                if lines.setdefault(name, line) != line:
                    both = f"in lines {lines[name]} and {line}"
                    raise UserError(f"{source} has the key '{name}' twice, {both}; leave one out")
            return super().construct_mapping(node, deep)

    try:
        values = yaml.load(text, Loader)  # a SafeLoader
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: it is nested too deep; check its brackets") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    # What is written like a date, a number or a truth value and is none, or an integer of thousands of digits.
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{source} holds a value that is not what it is written like ({error}); put it in quotes, or correct it"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{source} must be a YAML mapping with the keys model, calibration, ...")
    _refuse_circles(values, source, (), set())
    return values


def _refuse_circles(value: Any, source: str, around: tuple[int, ...], read: set[int]) -> None:
    """Refuse an alias to what it stands in, as in ``&a [*a]``, which nobody could read to its end.

    Args:
        value: Of a config.
        source: Its name.
        around: What the value stands in.
        read: What was read to its end, and need not be again where another alias leads to it.
    """
    if not isinstance(value, dict | list) or id(value) in read:
        return
    if id(value) in around:
        raise UserError(f"{source} has an alias (*) to what it stands in itself; leave it out")
    for inner in value.values() if isinstance(value, dict) else value:
        _refuse_circles(inner, source, (*around, id(value)), read)
    read.add(id(value))


def text_of(values: dict[str, Any]) -> str:
    """YAML text of plain values.

    Example:
        >>> print(text_of({"formats": ["int2", "int4"], "budgets": {"weight_bits": 3.0}}), end="")
        formats: [int2, int4]
        budgets: {weight_bits: 3.0}
    """
    import yaml

    return str(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True))


def parse_config(values: dict[str, Any], source: str = "config") -> Config:
    """A `Config` from plain values.

    Raises:
        UserError: With the place of the first wrong key or value in `source`.
    """
    from pydantic import TypeAdapter, ValidationError

    values = dict(values)
    if isinstance(values.get("sensitivity"), str):
        values["sensitivity"] = {"method": values["sensitivity"]}
    check_keys(values, Config, source, "")
    check_plain(values, Config, source, "")
    values = with_table_names(values, Config)
    try:
        config = TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{source}: {place}: {first['msg']}, got {_short(first.get('input'))}") from None
    check_plain(dataclasses.asdict(config), Config, source, "")  # texts such as `inf` have become numbers
    if config.gpu is not None and "formats" not in values:
        config = dataclasses.replace(config, formats=menu(config.gpu))
    check_values(config, source)
    return config


def resolve_paths(config: Config, directory: Path) -> Config:
    """The same configuration with the paths of model and data made absolute, relative to `directory`."""

    def absolute(text: str | None) -> str | None:
        if text is None or is_factory(text):
            return text
        try:
            return str((directory / Path(text).expanduser()).resolve())
        # Nobody's home directory, links in a circle, half a character.
        except (RuntimeError, ValueError) as error:
            said = text if text.isprintable() else repr(text)
            raise UserError(f"{said} leads nowhere: {str(error).rstrip('.')}; correct the path") from None

    replace = dataclasses.replace
    return replace(
        config,
        model=replace(config.model, path=absolute(config.model.path)),
        quantizer=replace(
            config.quantizer,
            checkpoints={name: str(absolute(path)) for name, path in config.quantizer.checkpoints.items()},
        ),
        calibration=replace(config.calibration, data=absolute(config.calibration.data) or ""),
        evaluation=replace(
            config.evaluation,
            data=absolute(config.evaluation.data),
            tasks=tuple(replace(task, path=absolute(task.path) or "") for task in config.evaluation.tasks),
        ),
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
