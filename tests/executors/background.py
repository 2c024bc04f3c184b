"""A command in the background that a test interrupts, and finding what it leaves behind."""

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.executors.launch import ROOT, environment

PATIENCE_S = 120.0
_MARK = "HPCMPQ_TEST_MARK"


class Background:
    """A running command; every process that descends from it inherits a mark by which it is found."""

    def __init__(self, command: Sequence[str], **variables: str) -> None:
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment(), **variables, _MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def descendants(self) -> list[int]:
        """Process ids of the command's processes that still run, itself included."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if f"{_MARK}={self._mark}".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def end(self) -> tuple[int, str]:
        """Exit status and output, once it and all its processes have ended."""
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        wait_until(lambda: not self.descendants(), "all processes have ended")
        return self.process.returncode, output

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.descendants():
            with suppress(ProcessLookupError):
                os.kill(number, 9)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again; fail after `PATIENCE_S`."""
    limit_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit_s, f"waited in vain until {what}"
        time.sleep(0.02)
