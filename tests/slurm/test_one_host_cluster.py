"""Runs under a real Slurm: the same bits as on one machine, and nothing lost whatever happens to the jobs."""

import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hpcmpq.store.attempts import read_processes
from hpcmpq.store.json_files import read_json
from tests.side_by_side import the_only
from tests.slurm.conftest import one_host_cluster, refusal
from tests.slurm.toy_jobs import ROOT, ToyRun, jobs_in, output, toy_run

pytestmark = pytest.mark.slow

Cluster = dict[str, str]
NewToy = Callable[..., ToyRun]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """quadratic.h5 of the toy by one process on this machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    toy = toy_run(tmp_path_factory.mktemp("local") / "local", environment)
    toy.hpcmpq("plan", toy.config, "--run-dir", toy.run.path)
    toy.hpcmpq("calibrate", toy.run.path, "--workers", 1)
    toy.hpcmpq("reduce", toy.run.path)
    return toy.run.quadratic_path.read_bytes()


@pytest.fixture(scope="module")
def over_time(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ToyRun, str]]:
    """A job of 80 seconds that is warned after a minute at the latest, one before its time limit."""
    toy = toy_run(tmp_path_factory.mktemp("over_time") / "toy", cluster, unit_s=2.5)
    yield toy, toy.submit("local", "time=2", "signal=B:USR2@60", "cpus_per_task=1")
    toy.cancel()


@pytest.fixture
def new_toy(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., ToyRun]]:
    """Makes the run of a test; jobs that are left when the test ends are cancelled."""
    made = []

    def make(**options: Any) -> ToyRun:
        made.append(toy_run(tmp_path / "toy", cluster, **options))
        return made[-1]

    yield make
    for toy in made:
        toy.cancel()


def assert_same_as_local(toy: ToyRun, local: bytes) -> None:
    assert toy.num_missing() == 0
    toy.hpcmpq("reduce", toy.run.path)
    assert toy.run.quadratic_path.read_bytes() == local


def test_a_chain_of_jobs_does_what_one_machine_does(over_time: object, new_toy: NewToy, local: bytes):
    # `over_time` only starts here, so that its minutes pass while other tests run.
    toy = new_toy()
    shown = toy.hpcmpq(
        *("submit", toy.config, "--run-dir", toy.run.path, "--executor", "array", "--plan-on-cluster"),
        *("--slurm", "array=2 partition=main calibrate.time=5"),
    )
    jobs = jobs_in(shown)
    assert list(jobs) == ["plan", "calibrate", "solve", "finish"]
    assert read_json(toy.run.jobs_path, "")["submissions"][-1]["jobs"] == jobs
    toy.wait_for_job(jobs["solve"], "COMPLETED", "CANCELLED")
    assert toy.run.quadratic_path.read_bytes() == local
    shown = toy.hpcmpq("status", toy.run.path)
    assert "32 of 32 units" in shown
    assert "units per hour" in shown
    assert "2 COMPLETED" in shown  # the tasks of the array


@pytest.mark.mpi
@pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed")
def test_mpi_ranks_under_srun_do_what_one_machine_does(new_toy: NewToy, local: bytes):
    toy = new_toy()
    job = toy.submit("mpi", "nodes=3", "ntasks=3")
    toy.wait_for_job(job, "COMPLETED", "FAILED")
    assert toy.field(job, "JobState") == "COMPLETED", toy.log()
    assert "connects two ranks of " in toy.log()  # nobody said which srun --mpi= it is
    toy.hpcmpq("reduce", toy.run.path)
    assert toy.run.quadratic_path.read_bytes() == local


def test_a_requeued_job_goes_on(new_toy: NewToy, local: bytes):
    toy = new_toy(unit_s=0.5)
    job = toy.submit("local")
    toy.wait_for(lambda: toy.num_done() >= 2)
    toy.scontrol("requeue", job)
    toy.wait_for_job(job, "PENDING")
    assert 2 <= toy.num_done() < 32
    toy.start_again(job)
    toy.wait_for_job(job, "COMPLETED")
    assert toy.field(job, "Restarts") == "1"
    assert toy.num_starts() == 2
    assert_same_as_local(toy, local)


def test_a_cancelled_run_goes_on_when_it_is_submitted_again(cluster: Cluster, new_toy: NewToy, local: bytes):
    toy = new_toy(unit_s=0.5)
    job = toy.submit("array", "array=2")
    toy.wait_for(lambda: toy.num_done() >= 2)
    output(["scancel", job], cluster)
    toy.wait_for_job(job, "CANCELLED")
    assert toy.num_missing() > 0
    jobs = read_json(toy.run.jobs_path, "")["submissions"][-1]["jobs"]
    toy.wait_for(lambda: toy.field(jobs["solve"], "JobState") == "CANCELLED")  # never left waiting for ever
    again = toy.submit("array", "array=2")
    toy.wait_for_job(again, "COMPLETED")
    assert_same_as_local(toy, local)


def test_a_job_whose_node_is_lost_goes_on_elsewhere(cluster: Cluster, new_toy: NewToy, local: bytes):
    toy = new_toy(unit_s=1.0)
    job = toy.submit("local")
    toy.wait_for(lambda: toy.num_done() >= 2)
    node = toy.field(job, "NodeList")
    if refusal(cluster):
        pid_file = Path(cluster["HPCMPQ_CLUSTER_DIR"]) / "run" / f"slurmd.{node}.pid"
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    else:
        assert one_host_cluster(cluster, "cut", node).returncode == 0
    # What Slurm does by itself after a while. Nobody is there to end the first life of the job: it goes on,
    # and the second finds units that appear by themselves.
    toy.scontrol("update", f"NodeName={node}", "State=down", "Reason=lost")
    toy.wait_for(lambda: toy.field(job, "Restarts") == "1")
    toy.start_again(job)
    toy.wait_for(lambda: toy.num_starts() == 2)
    lives = [process.started for process in read_processes(toy.run)]
    toy.wait_for(lambda: read_processes(toy.run)[0].attempts[-1].finished > lives[1])
    if not refusal(cluster):  # its daemon hears that the job is another node's now
        assert one_host_cluster(cluster, "mend", node).returncode == 0
    toy.wait_for_job(job, "COMPLETED")
    if refusal(cluster):
        toy.scontrol("update", f"NodeName={node}", "State=resume")
    assert one_host_cluster(cluster, "up").returncode == 0
    assert_same_as_local(toy, local)


@pytest.mark.timeout(600)
def test_a_job_that_reaches_its_time_limit_requeues_itself_until_it_is_done(
    over_time: tuple[ToyRun, str], local: bytes
):
    toy, job = over_time
    toy.wait_for_job(job, "COMPLETED", "FAILED", "TIMEOUT")
    assert toy.field(job, "JobState") == "COMPLETED"
    assert int(toy.field(job, "Restarts")) >= 1
    assert "is back in the queue" in toy.log()
    assert "interrupted (SIGUSR2)" in toy.log()
    assert_same_as_local(toy, local)
    toy.wait_for(
        lambda: toy.run.solution_path.exists()
    )  # the jobs that wait for it waited through its requeues


@pytest.mark.ray
@pytest.mark.timeout(
    900
)  # another worker may have Ray for a while, and a busy host does not start it at once
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_ray_cluster_of_two_nodes_does_what_one_machine_does(
    new_toy: NewToy, local: bytes, pytestconfig: pytest.Config
):
    toy = new_toy()
    with the_only(pytestconfig, "ray"):
        job = toy.submit("ray", "nodes=2", "time=10")
        toy.wait_for_job(job, "COMPLETED", "FAILED", timeout_s=500)
    assert toy.field(job, "JobState") == "COMPLETED", toy.log()
    assert_same_as_local(toy, local)
    left = output(
        ["srun", "--nodes=3", "--ntasks=3", "find", "/tmp", "-maxdepth", "1", "-name", "hq-*"],
        toy.environment,
    )
    assert f"hq-{job}-" not in left
