"""Each worker sees one GPU, and nothing is touched where there is no choice."""

import os
import sys
from pathlib import Path

import pytest

from hpcmpq.executors import devices
from hpcmpq.executors.devices import local_rank, take_gpu, visible_gpus


@pytest.mark.parametrize(
    ("listed", "place", "left"),
    [("0,1,2,3", 2, "2"), ("0,1,2,3", 5, "1"), ("GPU-a,GPU-b", 1, "GPU-b"), ("3", 1, "3"), ("", 1, "")],
)
def test_worker_takes_its_share_of_the_listed_gpus(listed, place, left, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    take_gpu(place)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_no_gpus_are_listed_as_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


VARIABLES = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A torch for AMD's GPUs, and a machine with two CPUs, three such GPUs and one that a control group forbids."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise AssertionError('it takes seconds')")
    (tmp_path / "torch" / "version.py").write_text("cuda = None\nhip: str | None = '6.2.41133'\n")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    for number, simds in enumerate([0, 0, 440, 440, 440]):
        (tmp_path / "nodes" / str(number)).mkdir(parents=True)
        (tmp_path / "nodes" / str(number) / "properties").write_text(
            f"cpu_cores_count 1\nsimd_count {simds}\n"
        )
    (tmp_path / "nodes" / "5" / "properties").mkdir(parents=True)  # which cannot be read either
    monkeypatch.setattr(devices, "KFD_NODES", str(tmp_path / "nodes"))
    others = {name: text for name, text in os.environ.items() if name not in VARIABLES}
    monkeypatch.setattr(os, "environ", others)
    return tmp_path


@pytest.mark.parametrize(
    ("listed", "visible"),
    [
        ((None, None, None), ["0", "1", "2"]),
        (("4,6", None, None), ["0", "1"]),  # by their places in the list
        (("4,6", None, "4,6"), ["0", "1"]),  # as Slurm sets both without AutoDetect
        (("4,5,6,7", "1,3", None), ["1", "3"]),
        ((None, "2, 5", "0"), ["2", "5"]),
        ((None, None, "GPU-a,GPU-b"), ["GPU-a", "GPU-b"]),
        (("", None, None), []),
    ],
)
def test_amd_gpus_are_those_that_rocm_leaves(listed, visible, amd: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in zip(VARIABLES, listed, strict=True):
        if text is not None:
            monkeypatch.setenv(name, text)
    assert visible_gpus() == visible
    before = dict(os.environ)
    take_gpu(4)
    assert os.environ == before | ({"HIP_VISIBLE_DEVICES": visible[4 % len(visible)]} if visible else {})


def test_a_torch_for_cpus_or_nvidia_takes_no_amd_gpu(amd: Path, monkeypatch: pytest.MonkeyPatch):
    (amd / "torch" / "version.py").write_text("cuda = '12.8'\nhip = None\n")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,9")
    assert visible_gpus() == ["5", "7", "9"]
    take_gpu(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7" and "HIP_VISIBLE_DEVICES" not in os.environ


def test_mpiexec_says_the_local_rank_before_the_batch_job_around_it():
    assert local_rank({"SLURM_LOCALID": "0", "MPI_LOCALRANKID": "3"}) == 3
    assert local_rank({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}) == 2
    assert local_rank({"SLURM_LOCALID": "1"}) == 1
    assert local_rank({}) == 0
