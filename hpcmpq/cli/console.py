"""How the command line prints: lines, tables, and progress with time left."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Table
from rich.text import Text

from hpcmpq.plan import UnitOutcome
from hpcmpq.store.run_dir import RunDir, remove_leftovers
from hpcmpq.store.timings import keep_timing

_out = Console(highlight=False)


def set_quiet(quiet: bool) -> None:
    """Print nothing but errors from now on."""
    _out.quiet = quiet


def say(text: str | Text, style: str | None = None) -> None:
    """Print a line of plain text, such as a path with brackets, perhaps in a style."""
    _out.print(text, style=style, markup=False, soft_wrap=True)


def say_as_is(text: str) -> None:
    """Print text that is nobody's markup, such as a script."""
    _out.out(text, highlight=False)


@contextmanager
def stage(run_dir: Path, name: str) -> Iterator[None]:
    """Announce a stage, remove what killed ones left, and keep its wall time in RUN/timings.json."""
    say(name, "bold")
    run = RunDir(run_dir)
    remove_leftovers(run)
    start = time.monotonic()
    yield
    keep_timing(run, name, time.monotonic() - start, time.strftime("%Y-%m-%dT%H:%M:%S%z"))


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[UnitOutcome, int, int], None]]:
    """A bar with time left; yields the function that takes (outcome, done, total)."""
    outcomes = 0
    with _bar(title, f"{unit}s") as bar:
        task = bar.add_task(title, total=None)

        def update(outcome: UnitOutcome, done: int, total: int) -> None:
            nonlocal outcomes
            outcomes += 1
            bar.update(task, completed=done, total=total)
            if outcome.error:
                again = "" if outcome.final else "; trying again"
                bar.console.print(
                    f"{unit} {outcome.unit}: {outcome.error}{again}", soft_wrap=True, markup=False
                )

        yield update
        bar.update(task, visible=outcomes > 0)
    if not outcomes:
        say(f"every {unit} is done already")


@contextmanager
def counter(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with time left; yields the function that takes (done, total)."""
    with _bar(title, unit) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(title: str, unit: str) -> Progress:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeLeft(), TextColumn("left"))
    return Progress(*columns, *times, console=_out)


def show(table: Table) -> None:
    """Print a table."""
    _out.print(table)


def rows(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table of plain texts."""
    table = Table(*map(escape, header), title=title)
    for row in rows:
        table.add_row(*map(escape, row))
    show(table)
