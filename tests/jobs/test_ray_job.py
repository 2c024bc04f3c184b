"""`ray job submit` on a running cluster: the package comes as a wheel, and a job goes on whose driver was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.executors.background import PATIENCE_S, wait_until
from tests.executors.launch import MARKS, ROOT, environment
from tests.executors.tiny_model import PAUSE_S
from tests.executors.tiny_run import plan_run, result
from tests.executors.toy_units import shards
from tests.ray_cluster import set_num_nodes

pytestmark = [pytest.mark.ray, MARKS["ray"][-1]]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what is in the wheel, whose package says where it is imported."""
    place = tmp_path_factory.mktemp("wheel")
    sources = place / "sources"  # a build leaves files beside them
    for name in ("hpcmpq", "jobs", "slurm"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", place, sources]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    [wheel] = place.glob("hpcmpq-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place / "job")
    first = place / "job" / "hpcmpq" / "__init__.py"
    note = 'import os\nopen(os.path.join(os.environ["WITNESSES"], str(os.getpid())), "w").write(__file__)\n'
    first.write_text(first.read_text() + note)
    return place / "job"


def ray_job(address: str, *words: object) -> subprocess.CompletedProcess[str]:
    """`ray job WORDS`."""
    command = [str(Path(sys.executable).with_name("ray")), "job", words[0], "--address", address, *words[1:]]
    return subprocess.run(
        list(map(str, command)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def submit(address: str, unpacked: Path, run: Path, variables: dict[str, str]) -> str:
    """Submit the calibration of a run, as soon as a node's agent takes jobs; the job's id."""
    job = f"calibrate-{time.monotonic_ns()}"
    words = [
        "--working-dir",
        unpacked,
        "--runtime-env-json",
        json.dumps({"env_vars": variables}),
        "--submission-id",
        job,
        "--no-wait",
        "--",
    ]
    command = [sys.executable, "-m", "hpcmpq", "calibrate", run, "--executor", "ray", "--workers", 1]
    limit_s = time.monotonic() + PATIENCE_S
    while (told := ray_job(address, "submit", *words, *command)).returncode != 0:
        assert "No available agent" in told.stdout + told.stderr, told.stdout + told.stderr
        assert time.monotonic() < limit_s
        time.sleep(1)
    return job


def ended(address: str, job: str) -> str:
    """The state in which a job has ended, once it has; `ray job status` would cost seconds each time it is asked."""
    from ray.job_submission import JobSubmissionClient

    client, limit_s = JobSubmissionClient(address), time.monotonic() + 300
    while (found := client.get_job_status(job)) not in ("SUCCEEDED", "FAILED", "STOPPED"):
        assert time.monotonic() < limit_s, client.get_job_logs(job)
        time.sleep(0.5)
    return str(found.value)


def driver_of(run: Path) -> int:
    """The process that hands out the units of a run."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"hpcmpq" in words and str(run).encode() in words and b"-m" in words[:3]:
                return int(path.parent.name)
    raise AssertionError("no driver runs")


def test_a_job_whose_driver_is_killed_goes_on_with_the_package_from_the_wheel(
    ray_cluster, reference, unpacked: Path, tmp_path: Path
):
    run = plan_run(tmp_path / "run")
    set_num_nodes(ray_cluster, 1)  # nodes on one host would unpack the working directory over one another
    address = f"http://{ray_cluster.head_node.webui_url}"
    witnesses = tmp_path / "witnesses"
    witnesses.mkdir()
    variables = {"WITNESSES": str(witnesses), PAUSE_S: "0.3"}
    first = submit(address, unpacked, run.path, variables)
    wait_until(lambda: len(shards(run.path)) >= 2, "some units are measured")
    os.kill(driver_of(run.path), signal.SIGKILL)
    assert ended(address, first) == "FAILED"
    kept = {path: path.stat().st_mtime_ns for path in run.shards_path.glob("*.h5")}
    assert 2 <= len(kept) < 9
    second = submit(address, unpacked, run.path, {**variables, PAUSE_S: "0"})
    assert ended(address, second) == "SUCCEEDED", ray_job(address, "logs", second).stdout
    assert result(run) == reference("secant")
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    # Drivers and workers had the wheel's package, which Ray unpacked, and not this checkout's.
    places = [path.read_text() for path in witnesses.iterdir()]
    assert len(places) >= 4 and all("working_dir_files" in place for place in places), places
    set_num_nodes(ray_cluster, 2)
