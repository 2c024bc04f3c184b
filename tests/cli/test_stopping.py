"""Told to stop at its first moments or its last, a command ends with a sentence and its status, never a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hpcmpq.executors.world import NAMES
from hpcmpq.stopping import RANKS
from tests.calling import Call
from tests.executors.launch import ROOT, environment
from tests.synthetic_run import write_run

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR2")

TELL = "import os, signal; os.kill(os.getpid(), getattr(signal, os.environ['TELL']))\n"
"""What a module does that is read or called when the signal is to come."""

MODULE, FUNCTION = re.findall(r'^hpcmpq = "(.*):(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[
    0
]
STARTS = {
    "module": ("-m", "hpcmpq", "status"),
    "console script": (
        "-c",
        f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())",
        "status",
    ),
    "mpi job": ("jobs/mpi_calibrate.py",),
    "ray job": ("jobs/ray_calibrate.py",),
    "deepspeed job": ("jobs/deepspeed_evaluate.py",),
    "solve alone": ("-m", "hpcmpq.solve"),
}


def started(
    words: Sequence[object], folder: Path, name: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Python with arguments, modules of a folder before others, told by the signal of a name."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": f"{folder}:{ROOT}", "TELL": name, **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def sentence(name: str) -> str:
    """What is said of a signal."""
    return f"hpcmpq: interrupted ({name}); run the same command to go on\n"


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("start", STARTS)
def test_while_libraries_are_read(start: str, name: str, tmp_path: Path):
    (tmp_path / "typer.py").write_text(TELL)  # of the first libraries that the command line reads
    (tmp_path / "numpy.py").write_text(TELL)  # and solving alone
    ended = started([*STARTS[start], tmp_path / "run"], tmp_path, name, RAY_ADDRESS="127.0.0.1:1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "", sentence(name))


def test_while_libraries_are_read_rank_0_prints_the_document(tmp_path: Path):
    (tmp_path / "typer.py").write_text(TELL)
    words = [*STARTS["module"], tmp_path / "run", "--json"]
    ended = started(words, tmp_path, "SIGTERM", PMI_RANK="0")
    assert json.loads(ended.stdout) == {
        "error": {
            "exit_status": 75,
            "type": "Interrupted",
            "message": "interrupted (SIGTERM); run the same command to go on",
        }
    }
    assert started(words, tmp_path, "SIGTERM", PMI_RANK="2").stdout == ""


def test_ranks_are_known_by_the_names_that_launchers_use():
    assert sorted(RANKS) == sorted(rank for names in NAMES.values() for rank, _, _ in names)


def tell(*names: str) -> None:
    """Send signals to this process, one right after the other."""
    for name in names:
        os.kill(os.getpid(), signal.Signals[name])


class Told:
    """Whose end sends a signal: what is raised in `__del__` Python only prints."""

    def __del__(self) -> None:
        """Send it."""
        tell("SIGTERM")


def raise_another() -> None:
    """As compiled code does when a handler raises inside a module's start."""
    try:
        tell("SIGTERM")
    except BaseException as error:
        raise ImportError("initialization failed") from error


def lose() -> None:
    """Told where no exception leaves, then work that goes on."""
    told = Told()
    del told
    for _ in range(5000):
        signal.sigtimedwait((), 0.001)


def tell_twice() -> None:
    """As a batch system and a launcher that passes it on do."""
    try:
        tell("SIGTERM")
    finally:
        tell("SIGTERM")


@pytest.mark.parametrize("work", [raise_another, lose, tell_twice])
def test_whatever_becomes_of_the_exception(
    work: Callable[[], None], call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr("hpcmpq.cli.slurm.read_status", lambda _: work())
    ended = call("status", tmp_path)
    assert (ended.status, ended.err) == (75, sentence("SIGTERM"))


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("status", [0, 2])
def test_once_it_has_ended(status: int, name: str, tmp_path: Path):
    if status == 0:
        write_run(tmp_path / "run")
    at_exit = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), getattr(signal, os.environ['TELL'])); "
    ended = started(["-c", at_exit + STARTS["console script"][1], "status", tmp_path / "run"], tmp_path, name)
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr and "interrupted" not in ended.stderr


def test_solving_alone_is_told_to_stop(tmp_path: Path):
    write_run(tmp_path / "run", solved=False)
    code = (
        "import os, signal; from hpcmpq.solve import __main__ as alone, stage; "
        "stage.solve = lambda *_: os.kill(os.getpid(), signal.SIGTERM); raise SystemExit(alone.main())"
    )
    ended = started(["-c", code, tmp_path / "run", "--budget", "weight_bits=3"], tmp_path, "SIGTERM")
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "", sentence("SIGTERM"))
