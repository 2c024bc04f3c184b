"""`hpcmpq` for tests of many commands: each is a process that forks from one which has imported the libraries already.

That spares each command the seconds in which torch and transformers are read, and each worker that it starts, which
forks too; all else is as when a shell starts it.
"""

import gc
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "h5py",
    "matplotlib.figure",
    "ortools.sat.python.cp_model",
    "typer",
    "rich",
    *(f"hpcmpq.{stage}.stage" for stage in ("planning", "calibrate", "solve", "refine", "evaluate")),
    "hpcmpq.calibrate.worker",
    "hpcmpq.export.fake_quantized",
    "hpcmpq.report.html",
)
"""All but `hpcmpq.cli`, which asks the environment how wide a line is."""

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({path!r})
    words = {{"arguments": sys.argv[1:], "directory": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(words).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16)))
"""


@contextmanager
def serving() -> Iterator[str]:
    """A script that does what `hpcmpq` does: text for a file that can be executed."""
    with tempfile.TemporaryDirectory(
        prefix="hq", dir="/tmp"
    ) as folder:  # short, as names of sockets have to be
        path = f"{folder}/socket"
        with subprocess.Popen(
            [sys.executable, "-m", "tests.started_once", path],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server:
            assert server.stdin is not None and server.stdout is not None
            with server.stdin:
                assert server.stdout.readline() == b"ready\n"
                yield CLIENT.format(python=sys.executable, path=path)


def serve(path: str) -> None:
    """Accept commands until standard input ends; returns in the process of each, with its words, folder and streams."""
    gc.disable()  # a tenth of the time in which libraries are read would go into looking for what nobody left
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # what is read stays in memory that all share
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait for a command are not waited for
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                sys.exit()
            client, _ = listener.accept()
            if os.fork() == 0:
                break
            client.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words, streams, *_ = socket.recv_fds(client, 1 << 20, 3)
    if command := os.fork():
        ended = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        client.send(str(ended if ended >= 0 else 128 - ended).encode())
        os._exit(0)
    client.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    request = json.loads(words)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["hpcmpq", *request["arguments"]]
    forking = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forking  # type: ignore[assignment]


if __name__ == "__main__":
    serve(sys.argv[1])
    from hpcmpq.cli import main

    main()
