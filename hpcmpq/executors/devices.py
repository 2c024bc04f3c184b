"""One GPU per worker: which GPUs a process may use, and taking one of them before CUDA or ROCm starts.

A torch that is built for AMD's GPUs calls them CUDA devices too, but ROCm has variables of its own: of the GPUs that
ROCR_VISIBLE_DEVICES lists, HIP_VISIBLE_DEVICES names some by their places in that list
(https://rocm.docs.amd.com/en/latest/conceptual/gpu-isolation.html); `torch.cuda` reads them so too.
"""

import glob
import importlib.util
import os
import re
import runpy
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hpcmpq.executors.world import NAMES

KFD_NODES = "/sys/class/kfd/kfd/topology/nodes"
"""Where Linux describes the processors that ROCm knows: CPUs have a `simd_count` of 0, and what a control group
forbids cannot be read."""

_LOCAL_RANKS = [local for launcher in ("mpiexec", "srun") for _, _, local in NAMES[launcher]]
"""An mpiexec's own come before srun's, because every process that an mpiexec starts inside an sbatch job inherits
that job's SLURM_LOCALID=0."""


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as the variable that chooses among them spells them; starts no GPU."""
    if not _torch_is_for_amd():
        listed = _listed("CUDA_VISIBLE_DEVICES")
        return _numbered(len(glob.glob("/dev/nvidia[0-9]*"))) if listed is None else listed
    if (chosen := _listed("HIP_VISIBLE_DEVICES")) is not None:
        return chosen
    if (exposed := _listed("ROCR_VISIBLE_DEVICES")) is not None:
        return _numbered(len(exposed))
    listed = _listed("CUDA_VISIBLE_DEVICES")
    return _numbered(_num_amd_gpus()) if listed is None else listed


def take_gpu(place: int) -> None:
    """Let this process see GPU number `place` alone, counting round; nothing changes with one GPU or none.

    The environment variable is read when CUDA or ROCm starts, which the first tensor on a GPU (or an MPI built with
    either) does, not the import of torch.
    """
    gpus = visible_gpus()
    if len(gpus) > 1:
        variable = "HIP_VISIBLE_DEVICES" if _torch_is_for_amd() else "CUDA_VISIBLE_DEVICES"
        os.environ[variable] = gpus[place % len(gpus)]


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """This process's number among those that the launcher started on its node; 0 without a launcher."""
    environment = os.environ if environment is None else environment
    return next((int(environment[name]) for name in _LOCAL_RANKS if environment.get(name, "").isdecimal()), 0)


def _listed(variable: str) -> list[str] | None:
    """The names in an environment variable, None where it is not set."""
    text = os.environ.get(variable)
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbered(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def _torch_is_for_amd() -> bool:
    """Whether the torch that is installed runs on AMD's GPUs, from its `version.py`: torch itself takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    version = Path(found.origin).with_name("version.py")
    return version.is_file() and runpy.run_path(str(version)).get("hip") is not None


def _num_amd_gpus() -> int:
    """GPUs that ROCm finds without any of its variables."""
    count = 0
    for path in Path(KFD_NODES).glob("*/properties"):
        with suppress(OSError):
            simds = re.search(r"^simd_count (\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            count += simds is not None and int(simds[1]) > 0
    return count
