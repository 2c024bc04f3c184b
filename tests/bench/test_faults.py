"""A short version of `python -m bench.faults`, and that its judge sees what is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from bench.faults import PASSED, Undisturbed, results, suffer, undisturbed
from bench.results import ROOT
from tests.executors.launch import MARKS, mpich_memory_freed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("faults") / "whole", ("plan", "calibrate", "reduce"))


@pytest.mark.parametrize("number", [0, 2, 5, 7, 9])
def test_whatever_happens_the_same_command_ends_with_the_same_bits(number: int, whole: Undisturbed):
    said: list[str] = []
    outcome = suffer(number, whole, said.append)
    assert outcome.ending in PASSED, (outcome, said)


@pytest.mark.mpi
@MARKS["mpi"][-1]
def test_ranks_of_mpi_fork_too():
    """In a process of its own: what forks from one that has begun MPI itself, as another test may have, crashes."""
    command = [sys.executable, "-m", "bench.faults", "--executor", "mpi"]
    with mpich_memory_freed():
        done = subprocess.run(
            [*command, "--first", "7", "--faults", "8", "--no-write"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "fault='told to stop" in said, said
    assert any(f"ending={ending!r}" in said for ending in PASSED), said


def test_a_shard_that_differs_or_is_gone_is_seen(whole: Undisturbed, tmp_path: Path):
    shutil.copytree(whole.folder / "reduce", tmp_path / "run")
    expected = results(whole.folder / "reduce")
    assert results(tmp_path / "run") == expected
    assert {name.partition("/")[0] for name in expected} >= {"plan.json", "rounded", "shards", "quadratic.h5"}
    first, second, *_ = sorted((tmp_path / "run" / "shards").iterdir())
    with h5py.File(first, "r+") as file:
        changed = next(item for item in file.values() if isinstance(item, h5py.Dataset) and item.size > 1)
        changed[...] = changed[...] + 1
    second.unlink()
    found = results(tmp_path / "run")
    assert {name for name in expected if found.get(name) != expected[name]} == {
        f"shards/{first.name}",
        f"shards/{second.name}",
    }
