"""The command `hpcmpq` itself: its options, its signals, its exit status."""

import io
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from hpcmpq import __version__
from hpcmpq.cli import console
from hpcmpq.cli.json_output import Reported, described, print_error, status_of
from hpcmpq.cli.once import OnceCommand
from hpcmpq.errors import EXIT_BAD_INPUT, EXIT_UNREAD, Infeasible, Interrupted, UserError, in_words
from hpcmpq.executors.collector import collect_rarely
from hpcmpq.stopping import keep_status, stop_by_exception

Function = TypeVar("Function", bound=Callable[..., Any])

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Choose how many bits each part of a trained network gets, within a budget, with a proven bound.",
    epilog="Start with: hpcmpq run configs/quickstart.yaml --run-dir runs/quickstart",
)


def command(example: str) -> Callable[[Function], Function]:
    """Registers a function as the command of its name, with --json and --quiet; the function stays as it is.

    Args:
        example: What to show at the end of its --help.
    """

    def register(function: Function) -> Function:
        app.command(epilog=f"Example: {example}", cls=OnceCommand)(described(function))
        return function

    return register


def _version(show: bool) -> None:
    if show:
        typer.echo(f"hpcmpq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.ERROR if quiet else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    for name in ("transformers", "httpx", "ray", "matplotlib", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    console.set_quiet(quiet)


def main() -> None:
    """Entry point: exit status 0 done, 2 bad input, 3 infeasible, 75 interrupted and resumable, 141 unread."""
    collect_rarely()
    _open_streams()
    status = 1
    try:
        status = _flushed(_run())
    except BrokenPipeError:
        if not _is_unread():
            raise
        status = EXIT_UNREAD
    except SystemExit as ended:
        # The parser and rich turn every broken pipe into status 1, also one between us and a worker.
        if not isinstance(ended.__context__, BrokenPipeError):
            status = ended.code if isinstance(ended.code, int) else 1
            raise
        if not _is_unread():
            raise ended.__context__ from None
        status = EXIT_UNREAD
    finally:
        keep_status(status)
    if status == EXIT_UNREAD:
        _to_nowhere(1)  # what Python still flushes on its way out
    sys.exit(status)


def _open_streams() -> None:
    """Standard streams that the shell closed (`>&-`) are the null device: files would get their descriptors."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _to_nowhere(descriptor)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: SIM115
    # A locale that lacks a character of ours, such as − or an accent in a path, gets a question mark.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _to_nowhere(descriptor: int) -> None:
    """Let a descriptor, open or not, be the null device."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    if null != descriptor:
        os.close(null)


def _flushed(status: int) -> int:
    """The status, or that of bad input where what was printed cannot be written, as to a file on a full disk."""
    try:
        print(end="", flush=True)  # an output that was never open is none
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"hpcmpq: cannot write the output: {error.strerror}; make room there", file=sys.stderr)
        _to_nowhere(1)  # what Python still flushes on its way out
        return status or EXIT_BAD_INPUT
    return status


def _is_unread() -> bool:
    """Whether an output is a pipe that nobody reads, or was: rich puts the null device in its place."""
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, select.POLLOUT)
    broken = any(events & select.POLLERR for _, events in outputs.poll(0))
    nowhere = os.stat(os.devnull).st_rdev
    return broken or any(os.fstat(descriptor).st_rdev == nowhere for descriptor in (1, 2))


def _run() -> int:
    """Run the command; its exit status."""
    as_json = "--json" in sys.argv[1:]
    heard: list[Interrupted] = []
    try:
        with stop_by_exception() as heard:
            status = app(standalone_mode=not as_json)
    except Exception as error:
        # Of an interruption compiled code and imports make errors of their own.
        return _told(heard[0] if heard else in_words(error), as_json)
    except Interrupted as interrupted:
        return _told(interrupted, as_json)
    return status if isinstance(status, int) else 0


def _told(error: BaseException, as_json: bool) -> int:
    """Say why the command ended; its exit status."""
    message = getattr(error, "format_message", error.__str__)()
    is_known = isinstance(error, UserError | Infeasible | Interrupted | Reported)
    is_known = is_known or hasattr(error, "format_message")
    if is_known:
        print(f"hpcmpq: {message}", file=sys.stderr)
    if as_json:
        _print_document(error, message)
    if not is_known:
        raise error  # a bug of ours: traceback and status 1
    return status_of(error)


def _print_document(error: BaseException, message: str) -> None:
    """Print the document of an error; where nobody reads it the failure still decides the exit status."""
    try:
        print_error(error, message)
    except BrokenPipeError:
        _to_nowhere(1)  # what stays in the buffer
