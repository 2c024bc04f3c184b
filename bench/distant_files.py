"""What a process sees of a run directory on another machine's disk: clocks that disagree, directories seen late."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def skew_clock(seconds_of: Callable[[], float]) -> None:
    """From now on `time.time` is wrong by so many seconds, which are asked for at each call; files' times are not."""
    right = time.time
    time.time = lambda: right() + seconds_of()  # type: ignore[assignment]


def see_late(seconds: float) -> None:
    """From now on directories are listed as they were up to so long ago, as by a client that keeps what it was told."""
    for name in ("listdir", "scandir"):
        setattr(os, name, _kept(getattr(os, name), seconds))


def _kept(look: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    told: dict[Any, tuple[float, list[Any]]] = {}

    def look_late(path: Any = ".") -> Any:
        if isinstance(path, int):  # an open directory, as when one is removed
            return look(path)
        asked = time.monotonic()
        if path not in told or asked - told[path][0] > seconds:
            told[path] = asked, list(look(path))
        return _Listing(told[path][1]) if look.__name__ == "scandir" else list(told[path][1])

    return look_late


class _Listing:
    """What `os.scandir` returns."""

    def __init__(self, entries: list[Any]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[Any]:
        return self._entries

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> "_Listing":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        """There is nothing to close."""


def write_start_up(folder: Path, skew_s: float, late_s: float) -> None:
    """A folder that, first in PYTHONPATH, does both to every Python; a clock is wrong by the name of its host."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(
        "import random, socket\n"
        "from bench.distant_files import see_late, skew_clock\n"
        f"wrong_s = random.Random(socket.gethostname()).uniform(-{skew_s}, {skew_s})\n"
        "skew_clock(lambda: wrong_s)\n"
        f"see_late({late_s})\n",
        encoding="utf-8",
    )
