"""Memory of a run's calibrate processes on this machine, workers included, from /proc."""

import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpcmpq.store.run_dir import RunDir

PROC = Path("/proc")


def memory_here(run: RunDir, proc: Path = PROC) -> int | None:
    """Resident bytes of processes of this machine that calibrate a run, and of all that they started; None if none do.

    Memory that several share counts for each.

    Args:
        run: The run directory, whose files of attempts name their writers.
        proc: Where the system lists its processes.
    """
    host = socket.gethostname()
    ends = [path.stem.rpartition("-") for path in run.attempts_path.glob("*.jsonl")]
    writers = {int(pid) for before, _, pid in ends if pid.isdigit() and before.endswith(f"-{host}")}
    parents = _parents(proc)
    alive = descendants(writers & parents.keys(), parents)
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


def _parents(proc: Path) -> dict[int, int]:
    found = {}
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            found[int(path.parent.name)] = int(fields[1])
        except (OSError, IndexError):
            continue  # it has just ended
    return found


def _resident(proc: Path, pid: int) -> int:
    try:
        pages = (proc / str(pid) / "statm").read_text(encoding="utf-8").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
