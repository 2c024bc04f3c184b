"""One GPU per worker: which GPUs a process may use, and taking one of them before CUDA starts."""

import glob
import os
from collections.abc import Mapping

from hpcmpq.executors.world import NAMES

_LOCAL_RANKS = [local for launcher in ("mpiexec", "srun") for _, _, local in NAMES[launcher]]
"""An mpiexec's own come before srun's, because every process that an mpiexec starts inside an sbatch job inherits
that job's SLURM_LOCALID=0."""


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES spells them; does not start CUDA."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def take_gpu(place: int) -> None:
    """Let this process see GPU number `place` alone, counting round; nothing changes with one GPU or none.

    The environment variable is read when CUDA starts, which the first tensor on a GPU (or an MPI built with
    CUDA) does, not the import of torch.
    """
    gpus = visible_gpus()
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """This process's number among those that the launcher started on its node; 0 without a launcher."""
    environment = os.environ if environment is None else environment
    return next((int(environment[name]) for name in _LOCAL_RANKS if environment.get(name, "").isdigit()), 0)
