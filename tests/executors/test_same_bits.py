"""The same codes and `quadratic.h5`, bit for bit, wherever the units ran, and after every kind of damage."""

import os
import subprocess
from pathlib import Path

import pytest

from hpcmpq.store.run_dir import RunDir
from tests.executors.launch import MARKS
from tests.executors.tiny_run import METHODS, calibrate, calibrate_all, plan_run, result

pytestmark = pytest.mark.slow

WAYS = [
    pytest.param("local", 2, id="two local processes"),
    pytest.param("mpi", 0, id="three MPI ranks", marks=MARKS["mpi"]),
    pytest.param("ray", 0, id="two Ray nodes", marks=MARKS["ray"]),
]


@pytest.mark.parametrize(("executor", "num_workers"), WAYS)
def test_same_bits_as_this_process(executor, num_workers, reference, tmp_path, request):
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    run_dirs = {method: plan_run(tmp_path / method, method) for method in METHODS}
    calibrate_all(list(run_dirs.values()), executor, num_workers)
    for method, run_dir in run_dirs.items():
        assert result(run_dir) == reference(method), method


def test_damaged_shards_are_found_recomputed_and_reported(reference, tmp_path):
    run_dir = plan_run(tmp_path)
    run_dir.shards_path.mkdir()
    for name, data in reference("secant")[0].items():
        (run_dir.shards_path / name).write_bytes(data)
    first, second, *_ = sorted(run_dir.shards_path.iterdir())
    truncated = first.read_bytes()
    first.write_bytes(truncated[: len(truncated) // 2])
    flipped = bytearray(second.read_bytes())
    place = flipped.find(measured_bytes(second))
    assert place > 0
    flipped[place] ^= 1
    second.write_bytes(bytes(flipped))
    printed = calibrate(run_dir).replace("\n", " ")
    for path in (first, second):
        assert f"{path} is damaged" in printed
    assert "2 of" not in printed
    assert result(run_dir) == reference("secant")
    assert "damaged" not in calibrate(run_dir)


def measured_bytes(path: Path) -> bytes:
    """Bytes of a measured number in a shard, as they lie in its file."""
    import h5py

    with h5py.File(path) as file:
        largest = max(
            (item for item in file.values() if isinstance(item, h5py.Dataset)), key=lambda item: item.size
        )
        return largest[()].tobytes()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this user may not mount a small disk: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_full_disk_is_one_sentence_and_the_same_command_goes_on(reference, small_disk):
    run_dir = plan_run(small_disk / "run")
    calibrated = RunDir(run_dir.path)
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 24576))
    printed = calibrate(calibrated, num_workers=2, status=2)
    sentences = [line for line in printed.splitlines() if line.startswith("hpcmpq: ")]
    assert len(sentences) == 1 and "No space left on device; make room" in sentences[0]
    assert "Traceback" not in printed
    ballast.unlink()
    calibrate(calibrated, num_workers=2)
    assert result(calibrated) == reference("secant")
