"""MPI jobs that were started wrongly."""

import os
import signal
import subprocess
import sys

import pytest

from hpcmpq.errors import Interrupted, UserError
from hpcmpq.executors.mpi_pool import _abort, _check_world
from hpcmpq.stopping import stop_by_exception
from tests.executors.launch import MARKS, MPIEXEC, command_line, run
from tests.executors.toy_units import UNITS, shards


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_worlds_of_one_are_refused(variable):
    with pytest.raises(UserError, match=f"{variable} says 4 ranks but MPI sees 1"):
        _check_world(1, {variable: "4"})


def test_mpiexec_in_a_larger_batch_job_is_fine():
    _check_world(4, {"PMI_SIZE": "4", "SLURM_NTASKS": "8"})
    _check_world(1, {"PMI_SIZE": "1", "SLURM_NTASKS": "8"})
    _check_world(1, {})


def test_a_second_signal_does_not_keep_a_rank_from_aborting_its_job(monkeypatch, capfd):
    class World:
        def Abort(self, status: int) -> None:
            raise SystemExit(status)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    tell = lambda _: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr("hpcmpq.executors.mpi_pool.time.sleep", tell)
    try:
        with stop_by_exception(), pytest.raises(SystemExit) as ended:
            _abort(World(), Interrupted("SIGTERM"))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.code == 75
    assert capfd.readouterr().err == "hpcmpq: interrupted (SIGTERM); run the same command to go on\n"


@pytest.mark.mpi
@MARKS["mpi"][-1]
def test_a_rank_that_stops_before_mpi_starts_ends_the_others():
    """MPICH's launcher waits for it without end otherwise, and so do they, in MPI's own start."""
    program = (
        "import os, signal\n"
        "if os.environ['PMI_RANK'] == '1':\n"
        "    from hpcmpq.stopping import stop_at_once\n"
        "    stop_at_once()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "from mpi4py import MPI\n"
    )
    ended = subprocess.run(
        [str(MPIEXEC), "-n", "3", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 75, ended
    assert "run the same command to go on" in ended.stderr


@pytest.mark.mpi
@MARKS["mpi"][-1]
def test_one_rank_works_itself(tmp_path):
    ended = run([sys.executable, "-m", "tests.executors.run_toys", "mpi", str(tmp_path)])
    assert ended.returncode == 0, ended.stderr
    assert len(shards(tmp_path)) == len(UNITS)


@pytest.mark.mpi
@MARKS["mpi"][-1]
def test_launcher_of_another_mpi_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    ended = run([sys.executable, "-m", "tests.executors.run_toys", "mpi", str(tmp_path)])
    assert ended.returncode == 2
    assert "OMPI_COMM_WORLD_SIZE says 3 ranks but MPI sees 1" in ended.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.mpi
@MARKS["mpi"][-1]
def test_only_as_many_ranks_as_asked_for_work(tmp_path):
    ended = run(command_line("mpi", "tests.executors.run_toys", "mpi", tmp_path, 1))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "starts").read_text().count("\n") == 1
