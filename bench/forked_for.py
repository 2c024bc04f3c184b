"""Processes that a launcher starts, without the seconds in which Python reads libraries.

What the launcher starts is a small script that stands for the process: it gives its words, environment and open files
to a server, which has read all libraries and forks the process. Signals are passed on to that, it ends where the script
is killed, and the script ends as it did.
"""

import json
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from hpcmpq.stopping import SIGNALS

_SCRIPT = """
import contextlib, json, os, signal, socket, sys
def pass_on(number, _):
    with contextlib.suppress(BrokenPipeError):  # it has ended
        server.send(str(number).encode())
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({path!r})
words = {{"words": sys.argv[1:], "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(words).encode()], [1, 2, int(os.environ.get("PMI_FD", 1))])
for number in {signals}:
    signal.signal(number, pass_on)
ended = int(server.recv(16) or -signal.SIGKILL)
if ended < 0:
    if ended != -signal.SIGKILL:
        signal.signal(-ended, signal.SIG_DFL)
    os.kill(os.getpid(), -ended)
sys.exit(ended)
"""


@contextmanager
def serving(become: Callable[[list[str]], NoReturn]) -> Iterator[tuple[str, ...]]:
    """A command that stands for `become(WORDS)` in a process that forks from this one, with its environment.

    Args:
        become: Is called in that process with the words that the launcher adds; standard output and standard error are
            the script's, and so is MPI's connection to the launcher.
    """
    with (
        # Short, as names of sockets have to be.
        tempfile.TemporaryDirectory(prefix="hq", dir="/tmp") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        path, script = f"{folder}/socket", Path(folder) / "stands_for.py"
        numbers = tuple(map(int, SIGNALS))
        script.write_text(_SCRIPT.format(path=path, signals=numbers), encoding="utf-8")
        listener.bind(path)
        listener.listen()
        server = os.fork()
        if server == 0:
            with suppress(KeyboardInterrupt):
                _serve(listener, become)
            os._exit(0)
        try:
            yield (sys.executable, "-IS", str(script))
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def stands_for_another(command: bytes) -> bool:
    """Whether a command line, as /proc has it, is the script."""
    return b"/stands_for.py\0" in command


def _serve(listener: socket.socket, become: Callable[[list[str]], NoReturn]) -> None:
    """A process for each script, with one beside it that passes on signals and the status."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those beside
    while True:
        script, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            break
        script.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, *_ = socket.recv_fds(script, 1 << 20, 3)
    process = os.fork()
    if process == 0:
        script.close()
        said = json.loads(text)
        os.environ.clear()
        os.environ.update(said["environment"])
        for number, file in enumerate(files[:2], 1):
            os.dup2(file, number)
            os.close(file)
        if "PMI_FD" in os.environ:
            os.environ["PMI_FD"] = str(files[2])
        become(said["words"])
    for file in files:
        os.close(file)
    ended = os.pidfd_open(process)
    while ended not in select.select([script, ended], [], [])[0]:
        said = b""
        with suppress(OSError):
            said = script.recv(16)
        os.kill(process, int(said or signal.SIGKILL))  # nothing is said by a script that was killed
        if not said:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with suppress(OSError):
        script.send(str(status).encode())
    os._exit(0)
