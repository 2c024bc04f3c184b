"""The argument that names a run directory."""

from pathlib import Path
from typing import TypeVar

import typer
from typer.models import ArgumentInfo

from hpcmpq.cli import completion
from hpcmpq.errors import UserError

T = TypeVar("T", Path, list[Path], Path | None)


def no_file(given: T) -> T:
    """Refuse the name of a file where a run directory is meant.

    Raises:
        UserError: Naming it.
    """
    for path in given if isinstance(given, list) else [given]:
        if path is not None and path.is_file():
            raise UserError(f"{path} is a file; give a run directory")
    return given


def run_argument(metavar: str, help_text: str) -> ArgumentInfo:
    """An argument that names a run directory."""
    return typer.Argument(
        metavar=metavar,
        help=help_text,
        show_default=False,
        autocompletion=completion.run_directories,
        callback=no_file,
    )
