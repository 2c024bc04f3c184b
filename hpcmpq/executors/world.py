"""Which of how many ranks this process is, from what its launcher put into the environment.

The same command runs under the deepspeed launcher or torchrun, `mpiexec` and `srun`, or alone.
"""

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpcmpq.errors import UserError

Launcher = Literal["torch", "mpiexec", "srun", "none"]

NAMES: dict[Launcher, tuple[tuple[str, str, str], ...]] = {
    "torch": (("RANK", "WORLD_SIZE", "LOCAL_RANK"),),
    "mpiexec": (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
        ("PALS_RANKID", "PALS_NRANKS", "PALS_LOCAL_RANKID"),
    ),
    "srun": (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),),
}
"""Rank, number of ranks and rank on this node. What an mpiexec sets comes before what srun sets, since an mpiexec
inside a batch job starts its processes with srun's variables too; those of a batch script lack the step's."""

_PORTS = (20000, 12000)
"""First of the ports that jobs meet at, and how many there are: below those that systems hand out by themselves."""


@dataclass(frozen=True)
class World:
    """This process among those that were started together.

    Attributes:
        rank: From 0.
        size: How many there are.
        local_rank: Rank among those on this node, which says which GPU to take.
        launcher: Who started them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: Launcher = "none"


ALONE = World()


def node_name() -> str:
    """This machine, as Slurm calls it in a job, else as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def find_world(environment: Mapping[str, str] | None = None) -> World:
    """This process's place according to the environment.

    The shell of `srun --pty` is alone, although its step may have more tasks.

    Example:
        >>> find_world({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"})
        World(rank=3, size=4, local_rank=1, launcher='srun')
        >>> find_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}).size  # a batch script
        1
    """
    environment = os.environ if environment is None else environment
    for launcher, names in NAMES.items():
        for triple in names:
            values = [environment.get(name, "") for name in triple]
            if all(value.isdecimal() for value in values):
                rank, size, local_rank = map(int, values)
                world = World(rank, size, local_rank, launcher)
                return ALONE if launcher == "srun" and _is_shell(environment) else world
    return ALONE


def is_lone_shell(environment: Mapping[str, str]) -> bool:
    """Whether this is the shell of `srun --pty`, which is task 0 of a step whose other tasks run no command of ours."""
    srun = all(environment.get(name, "").isdecimal() for name in NAMES["srun"][0])
    return srun and find_world(environment) == ALONE


def _is_shell(environment: Mapping[str, str]) -> bool:
    """srun says that its task 0 has a terminal, and this process has one; tasks of a step inside have none."""
    return "SLURM_PTY_PORT" in environment and has_terminal()


def has_terminal() -> bool:
    """Whether a terminal controls this process."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def meeting_point(world: World, environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port at which rank 0 waits for the others: MASTER_ADDR and MASTER_PORT, or what all can tell.

    Raises:
        UserError: If the ranks have no way to agree.
    """
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    if address and port and port.isdecimal():
        return address, int(port)
    if world.launcher == "srun":
        step = int(environment.get("SLURM_STEP_ID", "0"))
        number = 100 * int(environment["SLURM_JOB_ID"]) + step % 100
        return address or _first_node(environment), _PORTS[0] + number % _PORTS[1]
    if world.launcher == "mpiexec" and world.size > 1:
        return _from_rank_0()
    if world.size > 1:
        raise UserError(
            f"WORLD_SIZE={world.size} without MASTER_ADDR and MASTER_PORT; set them, or use deepspeed or torchrun"
        )
    return "127.0.0.1", _free_port()


def _first_node(environment: Mapping[str, str]) -> str:
    if environment.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", nodes],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        raise UserError(
            f"`scontrol show hostnames {nodes}` fails on this node; set MASTER_ADDR to the first node's name"
        ) from None
    return shown.stdout.split()[0]


def _from_rank_0() -> tuple[str, int]:
    """Rank 0's address and a free port of its, passed on by MPI, which is then done with."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"under mpiexec the ranks meet through mpi4py ({str(error).splitlines()[0]}): "
            "`pip install 'hpcmpq[mpi]'`, or set MASTER_ADDR and MASTER_PORT"
        ) from error
    world = MPI.COMM_WORLD
    nodes = set(world.allgather(MPI.Get_processor_name()))
    address = "127.0.0.1" if len(nodes) == 1 else _own_address()
    point: tuple[str, int] = world.bcast((address, _free_port()), 0)
    MPI.Finalize()  # what follows talks through torch.distributed; an error on one rank must not wait for MPI
    return point


def _own_address() -> str:
    import socket

    return socket.gethostbyname(socket.getfqdn())


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
