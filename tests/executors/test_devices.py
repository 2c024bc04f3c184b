"""Each worker sees one GPU, and nothing is touched where there is no choice."""

import os

import pytest

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


def test_mpiexec_says_the_local_rank_before_the_batch_job_around_it():
    assert local_rank({"SLURM_LOCALID": "0", "MPI_LOCALRANKID": "3"}) == 3
    assert local_rank({"SLURM_LOCALID": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}) == 2
    assert local_rank({"SLURM_LOCALID": "1"}) == 1
    assert local_rank({}) == 0
