"""Several runs in one job under a real Slurm: each has the bits that it has alone, also after the job was warned."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from hpcmpq.store.run_dir import RunDir
from tests.executors.toy_units import shards
from tests.slurm.toy_jobs import ROOT, ToyRun, output, toy_run

pytestmark = pytest.mark.slow

FORMATS = {"a": "[int2, int4]", "b": "[int3, int8]"}

JOBS = {
    "mpi": ("calibrate_mpi.sbatch", "--nodes=3", "--ntasks=3"),
    "array": ("calibrate_array.sbatch", "--array=0-1"),
}


def planned(path: Path, environment: Mapping[str, str], unit_s: float = 0.0) -> dict[str, ToyRun]:
    """Two runs of the toy in different formats, planned from one directory, since functions make their models."""
    toy = toy_run(path, environment, unit_s)
    text = toy.config.read_text()
    assert text.count(FORMATS["a"]) == 1
    toys = {name: replace(toy, run=RunDir(path / name), config=path / f"{name}.yaml") for name in FORMATS}
    for name, each in toys.items():
        each.config.write_text(text.replace(FORMATS["a"], FORMATS[name]))
        each.hpcmpq("plan", each.config, "--run-dir", each.run.path)
    return toys


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Shards of each run by one process on this machine that has no other."""
    toys = planned(
        tmp_path_factory.mktemp("alone") / "runs",
        {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    for toy in toys.values():
        toy.hpcmpq("calibrate", toy.run.path, "--workers", 1)
    assert shards(toys["a"].run.path) != shards(toys["b"].run.path)
    return {name: shards(toy.run.path) for name, toy in toys.items()}


@pytest.fixture
def toys(cluster: dict[str, str], tmp_path: Path) -> Iterator[dict[str, ToyRun]]:
    """Two planned runs whose units take long enough for a warning; jobs that are left are cancelled."""
    yield planned(tmp_path / "runs", cluster, unit_s=0.5)
    output(["scancel", "--name=several"], cluster)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(
            "mpi",
            marks=[
                pytest.mark.mpi,
                pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed"),
            ],
        ),
        "array",
    ],
)
def test_several_runs_have_the_bits_of_each_alone_though_a_job_was_warned_in_the_middle(
    way: str, toys: dict[str, ToyRun], alone: dict[str, dict[str, bytes]], tmp_path: Path
):
    script, *options = JOBS[way]
    one, *_ = toys.values()
    logs = tmp_path / "logs"
    logs.mkdir()
    job = output(
        ["sbatch", "--parsable", "--job-name=several", f"--output={logs}/%x-%a.log", *options]
        + [str(ROOT / "slurm" / script), *(str(toy.run.path) for toy in toys.values())],
        one.environment,
    ).strip()
    tasks = [job] if way == "mpi" else [f"{job}_0", f"{job}_1"]

    def said() -> str:
        return "\n".join(path.read_text() for path in sorted(logs.iterdir()))

    def begun() -> bool:
        assert one.field(job, "JobState") != "FAILED", said()
        return all(toy.num_done() >= 2 for toy in toys.values())

    one.wait_for(begun)
    # The task of an array that has the array's own number: its scontrol must not mean the others.
    (warned,) = [task for task in tasks if one.field(task, "JobId") == job]
    output(["scancel", "--batch", "--signal=USR2", warned], one.environment)
    one.wait_for_job(warned, "PENDING")
    if way == "mpi":
        assert all(2 <= toy.num_done() < len(alone[name]) for name, toy in toys.items()), said()
    one.start_again(warned)
    for task in tasks:
        one.wait_for_job(task, "COMPLETED", "FAILED")
        assert one.field(task, "JobState") == "COMPLETED", said()
        assert one.field(task, "Restarts") == ("1" if task == warned else "0"), said()
    assert said().count("interrupted (SIGUSR2)") == 1
    assert f"job {warned} is back in the queue" in said()
    assert {name: shards(toy.run.path) for name, toy in toys.items()} == alone
