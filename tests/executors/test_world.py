"""Ranks from the variables of real launchers, and where they meet."""

import pytest

from hpcmpq.errors import UserError
from hpcmpq.executors.world import World, find_world, meeting_point

SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77"}
HYDRA = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "2"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World()),
        (TORCH, World(3, 4, 1, "torch")),
        (HYDRA, World(2, 3, 2, "mpiexec")),
        (OPEN_MPI, World(0, 8, 0, "mpiexec")),
        (SRUN, World(1, 2, 1, "srun")),
        ({**SRUN, "PMI_RANK": "1", "PMI_SIZE": "2"}, World(1, 2, 1, "srun")),  # srun --mpi=pmi2
        (
            {**SRUN, **HYDRA},
            World(2, 3, 2, "mpiexec"),
        ),  # an mpiexec in a batch job starts its proxies by srun
        ({**SRUN, **HYDRA, **TORCH}, World(3, 4, 1, "torch")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}, World()),  # a batch script
    ],
)
def test_launchers(environment: dict[str, str], world: World):
    assert find_world(environment) == world


def test_all_ranks_of_a_job_meet_at_one_place():
    points = {
        meeting_point(find_world(environment), environment)
        for environment in ({**SRUN, "SLURM_PROCID": str(rank)} for rank in range(2))
    }
    assert len(points) == 1
    ((address, port),) = points
    assert address == "127.0.0.1" and 20000 <= port < 32768
    assert meeting_point(find_world(TORCH), TORCH) == ("n1", 29500)


def test_several_nodes_meet_at_a_given_address():
    environment = {**SRUN, "SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "node7"}
    assert meeting_point(find_world(environment), environment)[0] == "node7"


def test_ranks_that_cannot_meet_are_told_what_to_set():
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        meeting_point(find_world(environment), environment)
