"""Progress with time left: of the command line, and of calls from Python in a terminal or a notebook."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from hpcmpq.api.stages import Counted


def bar(title: str, unit: str, console: Console, *, stays: bool = True) -> Progress:
    """A bar with how many of how many, time elapsed and time left.

    Args:
        title: Of the stage.
        unit: What is counted, in the plural.
        console: Where it is drawn.
        stays: Whether it is still there when it is done.
    """
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeLeft(), TextColumn("left"))
    return Progress(
        *columns, *times, console=console, transient=not stays, disable=not (stays or seen(console))
    )


def seen(console: Console) -> bool:
    """Whether somebody looks: at a terminal, or at a notebook that can draw what changes."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


@contextmanager
def passing(title: str, unit: str) -> Iterator[Counted]:
    """A bar on standard error that goes when it is done; yields the function that takes (done, total)."""
    with bar(title, unit, Console(stderr=True), stays=False) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
