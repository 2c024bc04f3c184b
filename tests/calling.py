"""The command line, called in this process as a shell would start it, which spares the start."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hpcmpq.cli import main

ROOT = Path(__file__).resolve().parents[1]


class Called(NamedTuple):
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


Call = Callable[..., Called]


def status_of(*arguments: object) -> int:
    """Exit status of `hpcmpq ARGUMENTS`."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", ["hpcmpq", *map(str, arguments)])
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Function that calls the command line with some arguments."""

    def call(*arguments: object) -> Called:
        capfd.readouterr()
        return Called(status_of(*arguments), *capfd.readouterr())

    return call
