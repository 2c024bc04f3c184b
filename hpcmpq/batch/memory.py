"""Memory of the processes that run a run's work units on this machine, workers included, from /proc."""

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from hpcmpq.store.run_dir import MEASURING, RunDir

PROC = Path("/proc")

CLOCK_STEP_S = 2.0
"""How far the clock that names files may be ahead of the one that counts from the start of the system."""


def memory_here(run: RunDir, proc: Path = PROC) -> int | None:
    """Resident bytes of this machine's processes that run work units, and of all that they started; None if none do.

    Memory that several share counts for each.

    Args:
        run: The run directory, whose files of attempts name their writers.
        proc: Where the system lists its processes.
    """
    host, parents, started = socket.gethostname(), *processes(proc)
    writers = set()
    folders = [replace(run, measuring=each).attempts_path for each in MEASURING]
    for path in chain.from_iterable(folder.glob("*.jsonl") for folder in folders):
        before, _, pid = path.stem.rpartition("-")
        at, _, where = before.partition("-")
        with suppress(ValueError):  # a copy under a name of somebody's own
            # A process that began after the file has the number of one that is gone.
            if where == host and int(pid) in parents and started[int(pid)] <= float(at) + CLOCK_STEP_S:
                writers.add(int(pid))
    alive = descendants(writers, parents)
    return sum(_resident(proc, pid) for pid in alive) if alive else None


def descendants(of: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """These processes and all that descend from them, of {process: its parent}.

    Example:
        >>> sorted(descendants([2], {2: 1, 3: 2, 4: 3, 5: 1}))
        [2, 3, 4]
    """
    found: set[int] = set(of)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def processes(proc: Path) -> tuple[dict[int, int], dict[int, float]]:
    """{process: its parent} and {process: the Unix time at which it began}."""
    boot_s = float((proc / "stat").read_text(encoding="utf-8").partition("btime ")[2].split()[0])
    parents, started = {}, {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            started[int(path.parent.name)] = boot_s + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            continue  # it has just ended
    return parents, started


def _resident(proc: Path, pid: int) -> int:
    try:
        pages = (proc / str(pid) / "statm").read_text(encoding="utf-8").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
