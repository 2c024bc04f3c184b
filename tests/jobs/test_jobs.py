"""The entry points for launchers that want a Python file."""

import sys
import time

import pytest
import yaml

from tests.executors.launch import MARKS, MPIEXEC, ROOT, run
from tests.executors.tiny_run import plan_run, result
from tests.ray_cluster import set_num_nodes

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.mark.mpi
@MARKS["mpi"][-1]
def test_mpi_job(reference, tmp_path):
    run_dir = plan_run(tmp_path)
    command = [str(MPIEXEC), "-n", "3", sys.executable, "jobs/mpi_calibrate.py", str(run_dir.path)]
    ended = run(command, timeout_s=200)
    assert ended.returncode == 0, ended.stderr
    assert result(run_dir) == reference("secant")


@pytest.mark.ray
@MARKS["ray"][-1]
def test_ray_job_brings_the_package_along(ray_cluster, reference, tmp_path):
    from ray.job_submission import JobSubmissionClient

    run_dir = plan_run(tmp_path)
    set_num_nodes(ray_cluster, 1)  # nodes on one host would unpack the working directory over one another
    client = JobSubmissionClient(f"http://{ray_cluster.head_node.webui_url}")
    command = f"{sys.executable} jobs/ray_calibrate.py {run_dir.path}"
    runtime_env = yaml.safe_load((ROOT / "jobs" / "ray_runtime_env.yaml").read_text())
    job = submit(client, command, {**runtime_env, "working_dir": str(ROOT)})
    limit_s = time.monotonic() + 200
    while client.get_job_status(job).value not in ENDED and time.monotonic() < limit_s:
        time.sleep(0.5)
    assert client.get_job_status(job).value == "SUCCEEDED", client.get_job_logs(job)
    assert result(run_dir) == reference("secant")
    set_num_nodes(ray_cluster, 2)


def submit(client, command: str, runtime_env: dict) -> str:
    """Submit a job, as soon as the dashboard knows which node's agent may take it."""
    for _ in range(60):
        try:
            return client.submit_job(entrypoint=command, runtime_env=runtime_env)
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            time.sleep(1)
    raise TimeoutError("no node's agent takes jobs")


def test_ray_job_outside_a_cluster_says_what_to_do(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ended = run([sys.executable, "jobs/ray_calibrate.py", "run"])
    assert ended.returncode != 0
    assert "runs inside `ray job submit`" in ended.stderr and "Traceback" not in ended.stderr
