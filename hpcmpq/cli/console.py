"""How the command line prints: lines, tables, and progress with time left."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hpcmpq.api.bars import bar
from hpcmpq.plan import UnitOutcome

_out = Console(highlight=False)

LINE_EVERY_S = 60.0
"""Time between lines of progress where no bar can be drawn."""


def set_quiet(quiet: bool) -> None:
    """Print nothing but errors from now on."""
    _out.quiet = quiet


def say(text: str | Text, style: str | None = None) -> None:
    """Print a line of plain text, such as a path with brackets, perhaps in a style."""
    _out.print(text, style=style, markup=False, soft_wrap=True)


def say_as_is(text: str) -> None:
    """Print text that is nobody's markup, such as a script; bytes in it that are no UTF-8 are shown as unknown."""
    _out.out(text.encode(errors="surrogateescape").decode(errors="replace"), highlight=False)


def title(name: str) -> None:
    """Announce a stage."""
    say(name, "bold")


@contextmanager
def progress(
    title: str, unit: str, at_most: int | None = None
) -> Iterator[Callable[[UnitOutcome, int, int], None]]:
    """A bar with time left; yields the function that takes (outcome, done, total).

    Where nothing was told, the bar is gone in the end, and a line says why, unless an error does.
    """
    outcomes, lines = 0, _lines(title, f"{unit}s")
    with bar(title, f"{unit}s", _out) as shown:
        task = shown.add_task(title, total=None)

        def update(outcome: UnitOutcome, done: int, total: int) -> None:
            nonlocal outcomes
            outcomes += 1
            shown.update(task, completed=done, total=total)
            lines(done, total)
            if outcome.error:
                again = "" if outcome.final else "; trying again"
                shown.console.print(
                    f"{unit} {outcome.unit}: {outcome.error}{again}", soft_wrap=True, markup=False
                )

        try:
            yield update
        finally:
            shown.update(task, visible=outcomes > 0)
    if not outcomes:
        said = f"every {unit} is done already" if at_most != 0 else f"no {unit} is begun with --at-most 0"
        say(said)


@contextmanager
def progress_of(
    names: Sequence[str], unit: str
) -> Iterator[Callable[[str, str, UnitOutcome, int, int], None]]:
    """A bar for each of several runs and one over all; yields what takes (name, stage, outcome, done, total).

    Over all counts what is known: of a run that has not begun nothing, and of its stages the present one. Bars of runs
    of which nothing was told are gone in the end.
    """
    counts: dict[str, tuple[int, int]] = {}
    everything = "all runs"
    lines = {name: _lines(name, f"{unit}s") for name in (*names, everything)}
    with bar("{task.description}", f"{unit}s", _out) as shown:
        tasks = {name: shown.add_task(escape(name), total=None) for name in (*names, everything)}

        def update(name: str, stage: str, outcome: UnitOutcome, done: int, total: int) -> None:
            counts[name] = done, total
            over_all = sum(each for each, _ in counts.values()), sum(each for _, each in counts.values())
            shown.update(tasks[name], description=escape(f"{name}: {stage}"))
            for each, (num_done, num_all) in ((name, (done, total)), (everything, over_all)):
                shown.update(tasks[each], completed=num_done, total=num_all)
                lines[each](num_done, num_all)
            if outcome.error:
                again = "" if outcome.final else "; trying again"
                told = f"{name}: {unit} {outcome.unit}: {outcome.error}{again}"
                shown.console.print(told, soft_wrap=True, markup=False)

        try:
            yield update
        finally:
            for name, task in tasks.items():
                shown.update(task, visible=name in counts or (name == everything and bool(counts)))


@contextmanager
def counter(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with time left; yields the function that takes (done, total); where nothing was told it goes."""
    with bar(title, unit, _out) as shown:
        task, lines, told = shown.add_task(title, total=None), _lines(title, unit), False

        def update(done: int, total: int) -> None:
            nonlocal told
            told = True
            shown.update(task, completed=done, total=total)
            lines(done, total)

        try:
            yield update
        finally:
            shown.update(task, visible=told)


def _lines(title: str, unit: str) -> Callable[[int, int], None]:
    """Takes (done, total) and now and then prints a line with the time left, where the output is no terminal."""
    start = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int) -> None:
        nonlocal first, last
        now = time.monotonic()
        first = done if first is None else first
        if _out.is_terminal or now - last < LINE_EVERY_S or done <= first:
            return
        last = now
        left_s = (now - start) * (total - done) / (done - first)
        say(f"{title}: {done} of {total} {unit}, about {left_s:.0f} s left")

    return update


def show(*parts: Table | Text) -> None:
    """Print tables and lines, one under the other; long lines are not broken."""
    for part in parts:
        _out.print(part, soft_wrap=isinstance(part, Text))


def live(screens: Iterable[Sequence[Table | Text]]) -> None:
    """Draw one screen over the other at a terminal, one under the other elsewhere."""
    if not _out.is_terminal:
        for parts in screens:
            show(*parts)
        return
    with Live(console=_out, auto_refresh=False, vertical_overflow="visible") as drawn:
        for parts in screens:
            drawn.update(Group(*parts), refresh=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of plain texts."""
    made = Table(*map(escape, header), title=title)
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def rows(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print such a table."""
    show(table(header, rows, title))
