"""What the headers of a directory's safetensors files say, without any value."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcmpq.errors import UserError

STORED = {"model.safetensors": "model.safetensors.index.json"}
"""{the file of a model that is one: the index of one that is several}."""


def is_stored(directory: Path) -> bool:
    """Whether a directory has safetensors of a model."""
    return any((directory / name).is_file() for names in STORED.items() for name in names)


def file_of_each(directory: Path) -> dict[str, str]:
    """{tensor name: file name} of a directory's safetensors, as its index says where there is one.

    Raises:
        UserError: If there are none, or the index or the only file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    for single, index in STORED.items():
        if (directory / index).is_file():
            try:
                files = dict(json.loads((directory / index).read_text(encoding="utf-8"))["weight_map"])
                return {name: str(Path(file_name)) for name, file_name in files.items()}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise _unreadable(directory / index, error) from None
        if (directory / single).is_file():
            try:
                with safe_open(directory / single, "pt") as file:
                    return dict.fromkeys(file.keys(), single)
            except (SafetensorError, OSError) as error:
                raise _unreadable(directory / single, error) from None
    raise UserError(f"{directory} has no model.safetensors to stream from; set model.stream: false")


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it.

    Attributes:
        shape: Its shape.
        dtype: safetensors' name of its dtype.
    """

    shape: list[int]
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        bits = re.search(r"\d+", self.dtype)  # none in BOOL
        return int(bits[0]) // 8 if bits else 1


def stored_tensors(directory: Path, files: Mapping[str, str]) -> dict[str, Stored]:
    """{tensor name: what its header says} of {tensor name: file name}; every file is opened once.

    Raises:
        UserError: If a file is missing or damaged, or lacks a tensor that is said to be in it.
    """
    from safetensors import SafetensorError, safe_open

    names: dict[str, list[str]] = {}
    for name, file_name in files.items():
        names.setdefault(file_name, []).append(name)
    found: dict[str, Stored] = {}
    for file_name, own in names.items():
        try:
            with safe_open(directory / file_name, "pt") as file:
                for name in own:
                    stored = file.get_slice(name)
                    found[name] = Stored(list(stored.get_shape()), stored.get_dtype())
        except (SafetensorError, OSError) as error:
            raise _unreadable(directory / file_name, error) from None
    return {name: found[name] for name in files}


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).split("\n")[0]
    return UserError(f"cannot read {path} ({type(error).__name__}: {reason[:200]}); copy the model again")
