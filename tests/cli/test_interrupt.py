"""`hpcmpq calibrate` killed or interrupted at any moment: the same command goes on to the same bits."""

import os
import random
import signal
import time

import pytest

from hpcmpq.api.run import Run
from hpcmpq.store.run_dir import RunDir
from tests.executors.background import Background, wait_until
from tests.executors.launch import MARKS, command_line, mpich_memory_freed
from tests.executors.tiny_model import PAUSE_S
from tests.executors.tiny_run import calibrate, plan_run, result

pytestmark = pytest.mark.slow

NUM_KILLS = 5


def num_shards(run_dir: RunDir) -> int:
    return len(list(run_dir.shards_path.glob("*.h5")))


def start(run_dir: RunDir, pause_s: float, executor: str = "local") -> Background:
    """`hpcmpq calibrate` with two workers, whose forward passes take `pause_s`."""
    command = command_line(
        executor, "hpcmpq", "calibrate", run_dir.path, "--executor", executor, "--workers", 2
    )
    return Background(command, **{PAUSE_S: str(pause_s)})


def test_sigkill_at_random_moments_loses_nothing_and_leaves_nothing(reference, tmp_path):
    run_dir = plan_run(tmp_path)
    moments = random.Random(20)
    for _ in range(NUM_KILLS):
        shards_before = num_shards(run_dir)
        with start(run_dir, 0.02) as command:
            wanted = shards_before + moments.choice((0, 1, 1, 2))
            wait_until(
                lambda wanted=wanted, command=command: (
                    num_shards(run_dir) >= wanted or command.process.poll() is not None
                ),
                f"{wanted} shards are there",
            )
            time.sleep(moments.uniform(0, 4 if wanted == shards_before else 0.2))
            command.process.kill()
            command.end()
    calibrate(run_dir, num_workers=2)
    assert result(run_dir) == reference("secant")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR2"])
def test_signal_to_all_processes_ends_with_75_and_leaves_nothing(name, reference, tmp_path):
    run_dir = plan_run(tmp_path)
    with start(run_dir, 1.0) as command:
        wait_until(lambda: num_shards(run_dir) >= 1, "a shard is there")
        os.killpg(command.process.pid, signal.Signals[name])
        status, output = command.end()
    assert status == 75, output
    assert [line for line in output.splitlines() if line.startswith("hpcmpq: ")] == [
        f"hpcmpq: interrupted ({name}); run the same command to go on"
    ]
    assert "Traceback" not in output and "trying again" not in output
    # A worker writes the three units of four samples together: two workers have at most six.
    assert 1 <= num_shards(run_dir) <= 6
    Run(run_dir.path).calibrate()  # as the same command does, which takes seconds to start and goes on above
    assert result(run_dir) == reference("secant")


def test_signal_while_the_model_loads_ends_with_75(tmp_path):
    run_dir = plan_run(tmp_path)
    with start(run_dir, 0.0) as command:
        wait_until(lambda: len(command.descendants()) >= 3, "the workers start")
        os.kill(command.process.pid, signal.SIGTERM)
        status, output = command.end()
    assert status == 75, output


@pytest.mark.parametrize("executor", [pytest.param("mpi", marks=MARKS["mpi"])])
def test_signal_to_an_mpi_job_abandons_its_units_and_goes_on(executor, reference, tmp_path):
    run_dir = plan_run(tmp_path)
    with mpich_memory_freed(), start(run_dir, 1.0, executor) as command:
        wait_until(lambda: num_shards(run_dir) >= 1, "a shard is there")
        os.kill(command.process.pid, signal.SIGTERM)  # mpiexec passes it on to all ranks
        status, output = command.end()
    assert status == 75, output
    assert "hpcmpq: interrupted (SIGTERM); run the same command to go on" in output
    calibrate(run_dir, executor)
    assert result(run_dir) == reference("secant")
