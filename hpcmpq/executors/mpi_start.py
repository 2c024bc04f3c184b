"""Starting MPI, on a network that the launcher can introduce its ranks on."""

import os
from collections.abc import Mapping
from typing import Any


def started_mpi() -> Any:
    """`mpi4py.MPI`, started; it ends with the process.

    Raises:
        ImportError, RuntimeError: If mpi4py or an MPI library is missing.
    """
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    if not MPI.Is_initialized():
        os.environ.update(network_settings(MPI.Get_library_version(), os.environ))
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    return MPI


def network_settings(library: str, environment: Mapping[str, str]) -> dict[str, str]:
    r"""Variables that an MPI needs before it starts.

    Under Slurm's PMI, ranks on several nodes tell each other their addresses in lines of at most 1,024 bytes, and
    slurmstepd misreads the pieces of a longer one. With UCX the address has a kilobyte, shorter only where memory that
    nobody wrote to is zero, and ranks hang or end now and then (seen with MPICH 5.0.2 and Slurm 22.05). With OFI it is
    short, and what we send is small.

    Args:
        library: What `MPI.Get_library_version` says.
        environment: Of this process; what it says stays.

    Example:
        >>> step = {"PMI_FD": "12", "SLURM_STEP_NUM_NODES": "2"}
        >>> network_settings("MPICH Version: 5.0.2\nMPICH Device: ch4:ucx ofi\n", step)
        {'MPIR_CVAR_CH4_NETMOD': 'ofi'}
        >>> network_settings("MPICH Version: 5.0.2\nMPICH Device: ch4:ofi\n", step)
        {}
    """
    devices = [line for line in library.splitlines() if line.startswith("MPICH Device:")]
    networks = devices[0].rpartition(":")[2].split() if devices else []
    several = environment.get("SLURM_STEP_NUM_NODES", "1") != "1" and "PMI_FD" in environment
    wanted = several and networks[:1] == ["ucx"] and "ofi" in networks
    return {"MPIR_CVAR_CH4_NETMOD": "ofi"} if wanted and "MPIR_CVAR_CH4_NETMOD" not in environment else {}
