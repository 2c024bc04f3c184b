"""`--json` and `--quiet` of every command: one JSON document on standard output, or nothing but errors."""

import ctypes
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcmpq.cli import console
from hpcmpq.errors import EXIT_BAD_INPUT, exit_status
from hpcmpq.executors.world import find_world

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document to standard output, all else to standard error."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


class Reported(Exception):
    """Bad input found by a command that has a document to print nevertheless.

    Attributes:
        values: The document.
        exit_code: Exit status.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str, values: Any) -> None:
        super().__init__(message)
        self.values = values


@dataclass(frozen=True)
class Watched:
    """Documents that a command has one after the other: with --json a line for each, otherwise drawn.

    Attributes:
        documents: Plain values, at their own pace.
        draw: Shows them to people instead.
    """

    documents: Iterator[Any]
    draw: Callable[[], None]


def described(function: Callable[..., Any]) -> Callable[..., None]:
    """A command that prints what `function` prints, or what it returns as JSON, or nothing.

    The function returns plain values, or None in a process that has nothing to say, such as an MPI rank other
    than 0.
    """

    @wraps(function)
    def command(*, as_json: bool, quiet: bool, **arguments: Any) -> None:
        if quiet:
            console.set_quiet(True)
            logging.getLogger().setLevel(logging.ERROR)
        if not as_json:
            values = function(**arguments)
            if isinstance(values, Watched):
                values.draw()
            return
        with _standard_output_for_us():
            values = function(**arguments)
        if isinstance(values, Watched):
            for each in values.documents:
                typer.echo(json.dumps(each, allow_nan=False, default=_plain))
                sys.stdout.flush()
        elif values is not None:
            typer.echo(json.dumps(values, indent=2, allow_nan=False, default=_plain))

    signature = inspect.signature(function, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("as_json", AsJson), ("quiet", Quiet))
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, *more], return_annotation=None
    )
    command.__annotations__ = {p.name: p.annotation for p in (*parameters, *more)}
    return command


def print_error(error: BaseException, message: str) -> None:
    """Print the document of a command that failed; ranks other than 0 leave it to that one.

    Raises:
        BrokenPipeError: If nobody reads it.
    """
    if find_world().rank > 0:
        return
    facts = {"exit_status": status_of(error), "type": type(error).__name__, "message": message}
    typer.echo(json.dumps(error.values if isinstance(error, Reported) else {"error": facts}, indent=2))


def status_of(error: BaseException) -> int:
    """Exit status of an error, those of the command line's own parser included."""
    return getattr(error, "exit_code", None) or exit_status(error)


@contextmanager
def _standard_output_for_us() -> Iterator[None]:
    """What libraries, worker processes and C code write to standard output goes to standard error inside."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()  # some keep the object from before
        ctypes.CDLL(None).fflush(None)  # C libraries have a buffer of their own
        os.dup2(kept, 1)
        os.close(kept)


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
