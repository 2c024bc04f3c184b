"""Ranks that wait for one another: all there, one missing, a stranger, and signals at every moment."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from hpcmpq.errors import UserError
from hpcmpq.executors import roll_call, world
from hpcmpq.executors.roll_call import call_roll
from hpcmpq.executors.world import ALONE, World, find_world, is_lone_shell
from tests.executors.launch import ROOT

pytestmark = pytest.mark.slow

STEP = {
    "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1",
}  # fmt: skip
SHELL = {**STEP, "SLURM_PTY_PORT": "41000", "SLURM_PTY_WIN_ROW": "24"}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(size: int, ranks: list[int], port: int, **environment: str) -> dict[int, str]:
    """{rank: how its roll call ended} of ranks in threads."""
    ended: dict[int, str] = {}

    def one(rank: int) -> None:
        try:
            call_roll(World(rank, size, rank, "srun"), "127.0.0.1", port, environment)
            ended[rank] = "all are there"
        except UserError as error:
            ended[rank] = str(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return ended


def test_all_ranks_go_on_together(port: int):
    assert call(3, [2, 1, 0], port) == dict.fromkeys(range(3), "all are there")


def test_ranks_that_wait_for_a_missing_one_say_so(port: int):
    ended = call(3, [0, 1], port, HPCMPQ_MEETING_S="1.5")
    assert ended[0].startswith("rank 0 of 3: 2 of 3 ranks are at 127.0.0.1")
    assert ended[1].startswith("rank 1 of 3: rank 0 is not at 127.0.0.1")
    for sentence in ended.values():
        assert (
            "after 1.5 s; start all of them together with srun" in sentence and "HPCMPQ_MEETING_S" in sentence
        )


def test_ranks_of_another_job_are_not_counted(port: int):
    ended: dict[int, str] = {}
    other = threading.Thread(
        target=lambda: ended.update(call(2, [1], port, SLURM_JOB_ID="2", HPCMPQ_MEETING_S="2"))
    )
    other.start()
    own = call(2, [0], port, SLURM_JOB_ID="1", HPCMPQ_MEETING_S="1.5")
    other.join(30)
    assert "1 of 2 ranks are" in own[0]
    assert "rank 0 is not" in ended[1]


def test_rank_0_says_after_seconds_what_it_waits_for(port: int, monkeypatch, caplog):
    monkeypatch.setattr(roll_call, "SILENT_S", 0.1)
    call(8, [0], port, HPCMPQ_MEETING_S="1")
    assert f"waiting for 7 of 8 ranks at port {port}; interrupt at will" in caplog.messages


def test_a_port_in_use_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        ended = call(2, [0], int(taken.getsockname()[1]))
    assert "cannot listen" in ended[0] and "MASTER_PORT" in ended[0]


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_wrong_limit_is_a_sentence(text: str, port: int):
    assert "HPCMPQ_MEETING_S=" in call(2, [0], port, HPCMPQ_MEETING_S=text)[0]


def test_the_shell_of_a_step_is_alone_and_a_task_inside_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(world, "has_terminal", lambda: True)
    assert find_world(SHELL) == ALONE and is_lone_shell(SHELL)
    assert find_world(STEP).size == 8 and not is_lone_shell(STEP)
    launched = {**SHELL, "PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}
    assert find_world(launched) == World(1, 2, 1, "mpiexec") and not is_lone_shell(launched)
    monkeypatch.setattr(world, "has_terminal", lambda: False)  # srun inside the shell hands on its variables
    assert find_world(SHELL).size == 8 and not is_lone_shell(SHELL)


def test_a_terminal_is_what_controls_the_process():
    code = "from hpcmpq.executors.world import has_terminal; print(has_terminal())"
    detached = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        start_new_session=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert detached.stdout == "False\n"
    attached = f"import pty, sys; sys.exit(pty.spawn([sys.executable, '-c', {code!r}]))"
    shown = subprocess.run(
        [sys.executable, "-c", attached], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "True" in shown.stdout


WAITING = {
    "roll call": (
        "from hpcmpq.executors.roll_call import call_roll; from hpcmpq.executors.world import World\n"
        "call_roll(World(0, 8, 0, 'srun'), '127.0.0.1', int(sys.argv[1]), {})"
    ),
    "a library": (
        "import ctypes; from hpcmpq.executors.roll_call import signals_heard\n"
        "lock, libc = (ctypes.c_char * 64)(), ctypes.CDLL(None)\n"
        "with signals_heard(''):\n    libc.pthread_mutex_lock(lock), libc.pthread_mutex_lock(lock)"
    ),
}
"""Rank 0 whose others never come, and a library that goes on waiting in C when a signal has come."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize("place", WAITING)
def test_signals_end_a_process_that_waits(place: str, number: signal.Signals, port: int):
    code = (
        "import signal, sys\n"
        "from hpcmpq.errors import Interrupted, exit_status\n"
        "def stop(number, _): raise Interrupted(signal.Signals(number).name)\n"
        "for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2): signal.signal(n, stop)\n"
        "try:\n    print('ready', flush=True)\n    " + WAITING[place].replace("\n", "\n    ") + "\n"
        "except Interrupted as error:\n    print('hpcmpq:', error)\n    sys.exit(exit_status(error))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1.0)  # for it to wait; a signal before that ends it alike
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 75, printed
    assert f"interrupted ({number.name}); run the same command to go on" in printed
