"""One command of the package, and what happens to it: signals, full and distant disks, wrong clocks, damaged files.

A command is a process that forks from this one, which has read all libraries, with workers that fork too. So do the
processes that a launcher starts, see `bench.forked_for`; actors of Ray alone read libraries themselves.
"""

import ctypes
import fcntl
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bench.distant_files import see_late, skew_clock
from bench.forked_for import stands_for_another
from hpcmpq.executors import mpi_pool
from hpcmpq.stopping import SIGNALS

PATIENCE_S = 300.0
_MARK = "HPCMPQ_FAULT_MARK"
"""Environment variable of processes under a launcher: the command's process group."""
_FAULT = f"{_MARK}_FAULT"
"""Environment variable of such processes: the fault's name, if there is one, and a seed."""
ACTORS = f"{_MARK}_ACTORS"
"""Environment variable of a Ray whose actors belong to the command that runs."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, negative for a signal; what it said; how long it took."""

    status: int
    said: str
    seconds: float


@dataclass(frozen=True)
class Fault:
    """What happens to a command.

    Attributes:
        before: To the run directory, before it starts; returns the name of the file that it damaged.
        inside: In its process, before it begins.
        during: To it, by its process group, while it runs; `undisturbed` is how long it takes otherwise.
    """

    before: Callable[[Path, random.Random], str] | None = None
    inside: Callable[[random.Random], None] | None = None
    during: Callable[[int, random.Random, float], None] | None = None


def run(
    words: Sequence[str],
    fault: Fault,
    draw: random.Random,
    undisturbed_s: float,
    launcher: Sequence[str] = (),
    tasks: int = 1,
) -> Ended:
    """`hpcmpq WORDS` with a fault, to its end; nothing of it is left.

    Args:
        words: Its arguments.
        fault: What happens to it.
        draw: Says when.
        undisturbed_s: How long it takes otherwise.
        launcher: A command that starts processes which `become` the command, in groups of its own or none.
        tasks: Processes that share the work as those of a job array, each with its `--part`.
    """
    begun = time.monotonic()
    reader, writer = os.pipe()  # which has room on the fullest disk
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process = os.fork()
    if process == 0:
        for number in SIGNALS:  # Python's own handler of SIGINT is not the command's
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(reader)
        _become(words, writer, fault, draw, launcher, tasks)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.close(writer)
    with suppress(ProcessLookupError, PermissionError):  # the child does so too, whoever is first
        os.setpgid(process, process)
    if fault.during is not None:
        fault.during(process, draw, undisturbed_s)
    while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
        if time.monotonic() - begun > PATIENCE_S:
            _send(_members(process), signal.SIGKILL)
        time.sleep(0.005)
    _send(_members(process), signal.SIGKILL)  # workers of a killed command, which leave by themselves
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb") as file:
        said = (file.read() or b"").decode(errors="replace")
    return Ended(os.waitstatus_to_exitcode(ended[1]), said, time.monotonic() - begun)


def _become(
    words: Sequence[str],
    writer: int,
    fault: Fault,
    draw: random.Random,
    launcher: Sequence[str],
    tasks: int,
) -> NoReturn:
    """The rest of the life of a forked process."""
    try:
        os.setpgid(0, 0)
        for number in (1, 2):
            os.dup2(writer, number)
        os.close(writer)
        if not launcher:
            _live(words, fault, draw, tasks)
        names = [name for name, known in FAULTS.items() if known == fault]
        told = {_MARK: str(os.getpid()), _FAULT: json.dumps([*names, draw.random()])}
        # Until it is handled: Python's own handler prints tracebacks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.execve(launcher[0], [*launcher, *words], {**os.environ, **told})
    finally:
        os._exit(1)


def become(words: Sequence[str]) -> NoReturn:
    """The life of a process that a launcher started, of the process group of its command."""
    *names, seed = json.loads(os.environ[_FAULT])
    with suppress(ProcessLookupError, PermissionError):  # the command was killed already
        os.setpgid(0, int(os.environ[_MARK]))
        _live(words, FAULTS[names[0]] if names else NONE, random.Random(seed), 1)
    os._exit(1)


def _live(words: Sequence[str], fault: Fault, draw: random.Random, tasks: int) -> NoReturn:
    """The command, in this process."""
    status = 1
    try:
        sys.stdout, sys.stderr = map(_text, (1, 2))
        forking = multiprocessing.get_context("fork")
        multiprocessing.get_context = lambda method=None: forking  # type: ignore[assignment]
        if fault.inside is not None and "PMI_FD" in os.environ:
            _once_mpi_has_started(fault.inside, draw)
        elif fault.inside is not None:
            fault.inside(draw)
        if tasks > 1:
            words = [*words, "--part", f"{_share_out(tasks)}/{tasks}"]
        sys.argv = ["hpcmpq", *words]
        from hpcmpq.__main__ import main

        main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
            mpi.Finalize()
            ctypes.CDLL(None).exit(status)  # MPICH leaves its launcher at exit
        os._exit(status)


def _once_mpi_has_started(inside: Callable[[random.Random], None], draw: random.Random) -> None:
    """Its shared memory is not the disk that is full."""
    start = mpi_pool.started_mpi

    def started_mpi() -> Any:
        mpi = start()
        inside(draw)
        return mpi

    mpi_pool.started_mpi = started_mpi


def _share_out(tasks: int) -> int:
    """The number of a task, in a process of its own; the one that started them ends as the worst of them.

    It passes signals on, as a batch system does: a task may hear of one twice.
    """
    started = []
    for task in range(tasks):
        process = os.fork()
        if process == 0:
            return task
        started.append(process)
    for number in SIGNALS:
        signal.signal(number, lambda number, _: _send(started, number))
    ended = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    worst = min(ended) if min(ended) < 0 else max(ended)
    os._exit(128 - worst if worst < 0 else worst)


def _text(number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(number, "w", closefd=False)), "utf-8", line_buffering=True
    )


def _members(group: int) -> list[int]:
    """Processes of a command, itself first: those of its group, and those that a launcher started in others.

    The actors of a Ray that runs beside are among them; what only stands for a process of its group is not.
    """
    found, mark = [], f"{_MARK}={group}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            fields = (path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            environment = (path / "environ").read_bytes()
            command, number = (path / "cmdline").read_bytes(), int(path.name)
            if stands_for_another(command) and number != group:
                continue
            is_actor = ACTORS.encode() in environment and _is_actor(command)
            if fields[0] != "Z" and (int(fields[2]) == group or mark in environment or is_actor):
                found.append(number)
    return sorted(found, key=lambda number: number != group)


def _is_actor(command: bytes) -> bool:
    return command.startswith(b"ray::") and not command.startswith(b"ray::IDLE")


def _send(processes: Sequence[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _wait(draw: random.Random, undisturbed_s: float) -> None:
    time.sleep(draw.uniform(0, 1.1 * undisturbed_s))


def _kill_all(group: int, draw: random.Random, undisturbed_s: float) -> None:
    _wait(draw, undisturbed_s)
    _send(_members(group), signal.SIGKILL)


def _kill_one(group: int, draw: random.Random, undisturbed_s: float) -> None:
    """The command itself, or a worker where there is one then."""
    _wait(draw, undisturbed_s)
    _send([draw.choice(_members(group)[1:] or [group])], signal.SIGKILL)


def _warn(group: int, draw: random.Random, undisturbed_s: float) -> None:
    """As a batch system does: all processes, or the one that passes it on."""
    _wait(draw, undisturbed_s)
    number, members = draw.choice((signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)), _members(group)
    _send(members if draw.random() < 0.5 else members[:1], number)


def _stop(group: int, draw: random.Random, undisturbed_s: float) -> None:
    """One process of the command or all, for a while."""
    _wait(draw, undisturbed_s)
    members = _members(group)
    chosen = members if draw.random() < 0.5 else [draw.choice(members or [group])]
    _send(chosen, signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 1.0))
    _send(chosen, signal.SIGCONT)


def _full_disk(draw: random.Random) -> None:
    """No file grows beyond a random size, as on a disk with so much room."""
    size = int(10 ** draw.uniform(1, 4.5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _slow_renames(draw: random.Random) -> None:
    """Renames take their time, as between the servers of a busy file system."""
    replace, pause_s = os.replace, draw.uniform(0.05, 0.5)

    def slow(*paths: Path) -> None:
        time.sleep(pause_s)
        replace(*paths)

    os.replace = slow  # type: ignore[assignment]


def _wrong_clocks(draw: random.Random) -> None:
    """Every process is wrong by up to two hours of its own, as if each were on another machine."""
    seed = draw.random()
    skew_clock(lambda: random.Random(f"{seed} {os.getpid()}").uniform(-7200, 7200))


def _late_directories(draw: random.Random) -> None:
    """Listings are up to three seconds old."""
    see_late(draw.uniform(0.5, 3.0))


def _some_file(run: Path, draw: random.Random) -> Path:
    """A file of the run with something in it, seldom one of its records; every directory is as likely as another."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size > 0)
    results = [path for path in files if path.parent.name not in ("attempts", "timings")]
    chosen = results if draw.random() < 0.9 else files
    folder = draw.choice(sorted({path.parent for path in chosen}))
    return draw.choice([path for path in chosen if path.parent == folder])


def flip(run: Path, draw: random.Random) -> str:
    """Change a bit of a file of the run; its name."""
    path = _some_file(run, draw)
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(data))
    return path.relative_to(run).as_posix()


def truncate(run: Path, draw: random.Random) -> str:
    """Cut a file of the run short; its name."""
    path = _some_file(run, draw)
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
    return path.relative_to(run).as_posix()


NONE = Fault()
FAULTS = {
    "all its processes killed": Fault(during=_kill_all),
    "one of its processes killed": Fault(during=_kill_one),
    "told to stop (TERM, USR2 or INT)": Fault(during=_warn),
    "stopped and continued": Fault(during=_stop),
    "disk full": Fault(inside=_full_disk),
    "renames delayed, then killed": Fault(inside=_slow_renames, during=_kill_all),
    "clocks that disagree, then killed": Fault(inside=_wrong_clocks, during=_kill_all),
    "directories seen late, then killed": Fault(inside=_late_directories, during=_kill_all),
    "a bit of a file flipped": Fault(before=flip),
    "a file cut short": Fault(before=truncate),
}
"""What can happen, by name."""
