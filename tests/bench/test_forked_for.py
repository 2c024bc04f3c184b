"""What a launcher starts, in a process that forks from this one: its words, environment, output, signals and end."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from bench.forked_for import serving, stands_for_another
from tests.executors.background import wait_until


def become(words: Sequence[str]) -> NoReturn:
    """Say who this is, then end as the first word says."""
    os.write(1, f"{os.getpid()} {os.environ['SAYS']} {' '.join(words)}\n".encode())
    os.write(2, b"error")
    if words[0] == "sleep":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(1, b"asleep\n")
        time.sleep(600)
    if words[0] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(int(words[0]))


def started(process: Sequence[str], *words: str) -> subprocess.Popen[bytes]:
    """The script with words, in an environment of its own."""
    environment = {**os.environ, "SAYS": "hello"}
    return subprocess.Popen(
        [*process, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


@pytest.mark.parametrize(("word", "status"), [("0", 0), ("75", 75), ("killed", -signal.SIGKILL)])
def test_ends_as_the_process_does(word: str, status: int):
    with serving(become) as process:
        script = started(process, word, "more")
        out, error = script.communicate(timeout=60)
    number, *said = out.decode().split()
    assert (script.returncode, said, error) == (status, ["hello", word, "more"], b"error")
    assert int(number) not in (os.getpid(), script.pid)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_signals_to_the_script_reach_the_process(name: str):
    with serving(become) as process:
        script = started(process, "sleep")
        assert script.stdout is not None
        number = int(script.stdout.readline().split()[0])
        assert script.stdout.readline() == b"asleep\n"
        assert stands_for_another(Path(f"/proc/{script.pid}/cmdline").read_bytes())
        assert not stands_for_another(Path(f"/proc/{number}/cmdline").read_bytes())
        script.send_signal(signal.Signals[name])
        script.communicate(timeout=60)
        assert script.returncode == -signal.Signals[name]
        wait_until(lambda: not Path(f"/proc/{number}").exists(), "the process has ended")
