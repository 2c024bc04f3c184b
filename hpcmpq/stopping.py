"""Signals that tell a command to stop, heard from its first moment to its last.

While its libraries are read nothing has begun, and an exception would come where a library catches it or makes another
of it: there the handler ends the process. While it works an exception lets it tidy up. Once it has ended, its exit
status stands.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from hpcmpq.errors import EXIT_INTERRUPTED, Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "SLURM_PROCID")
"""Variables of ranks, as `hpcmpq.executors.world` knows them, which is not read yet at the start."""

_AGAIN_S = 0.05

_PASSED_ON_S = 0.2
"""In which a launcher passes on what a rank said before it is told to end all of them."""


def stop_at_once() -> None:
    """From now on a signal ends this process with a sentence and status 75: there is nothing to tidy up yet.

    With --json the document of that error is printed too, in ranks other than 0 as little as later.
    """
    _handle(_end)


@contextmanager
def stop_by_exception() -> Iterator[list[Interrupted]]:
    """Inside, a signal raises `Interrupted`, and again soon where that is lost, as in a `__del__`.

    Signals are ignored from its end, where the command says how it ended, until `keep_status`.

    Yields:
        What was raised, for libraries make other errors of it.
    """
    heard: list[Interrupted] = []
    before = sys.unraisablehook

    def interrupt(number: int, _frame: FrameType | None) -> None:
        heard.append(Interrupted(signal.Signals(number).name))
        raise heard[-1]

    def lost(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            before(unraisable)
            return
        number = signal.Signals[unraisable.exc_value.args[0]]
        again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    try:
        sys.unraisablehook = lost
        _handle(interrupt)
        yield heard
    finally:
        ignore_signals()
        sys.unraisablehook = before


def ignore_signals() -> None:
    """From now on signals do nothing: this process ends by itself soon, or when another one says so."""
    _handle(signal.SIG_IGN)


def keep_status(status: int) -> None:
    """From now on a signal ends this process at once with the status that it has anyway."""
    if status == EXIT_INTERRUPTED:
        _tell_launcher()
    _handle(lambda *_: os._exit(status))


def _handle(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _end(number: int, _frame: FrameType | None) -> None:
    interrupted = Interrupted(signal.Signals(number).name)
    with suppress(OSError):  # nobody reads it
        os.write(2, f"hpcmpq: {interrupted}\n".encode())
    if "--json" in sys.argv[1:] and all(os.environ.get(name, "0") == "0" for name in RANKS):
        facts = f'"exit_status": {EXIT_INTERRUPTED}, "type": "Interrupted", "message": "{interrupted}"'
        with suppress(OSError):
            os.write(1, f'{{"error": {{{facts}}}}}\n'.encode())
    _tell_launcher()
    os._exit(EXIT_INTERRUPTED)


def _tell_launcher() -> None:
    """Have Hydra, the mpiexec of MPICH, end all ranks: one that leaves before MPI starts is waited for without end."""
    if "PMI_FD" in os.environ and "SLURM_PROCID" not in os.environ and "mpi4py.MPI" not in sys.modules:
        with suppress(OSError, ValueError):
            launcher = int(os.environ["PMI_FD"])
            # Not a file that has its number in a process which a rank started.
            if stat.S_ISSOCK(os.fstat(launcher).st_mode):
                time.sleep(_PASSED_ON_S)
                os.write(launcher, f"cmd=abort exitcode={EXIT_INTERRUPTED}\n".encode())  # PMI-1
