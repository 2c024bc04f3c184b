"""Which `srun --mpi=` connects the ranks of the MPI that mpi4py loads: what to try first, and the try itself.

    python -m hpcmpq.executors.pmi "$(srun --mpi=list 2>&1)"     a line with the library, then one for each type to try
    srun --ntasks=2 --mpi=TYPE python -m hpcmpq.executors.pmi    status 0 if the two ranks see each other

A batch job calls both (slurm/calibrate_mpi.sbatch): srun is the host's, Python may be in a container.
"""

import re
import sys

from hpcmpq.errors import UserError, exit_status
from hpcmpq.executors.mpi_start import started_mpi

PREFERRED = {
    "Open MPI": ("pmix", "pmi2"),
    "CRAY MPICH": ("cray_shasta", "pmi2", "pmix"),
    "Intel(R) MPI": ("pmi2", "pmix"),
    "MVAPICH": ("pmi2", "pmix"),
    "MPICH": ("pmi2", "pmix"),
}
"""What a library's version says: types of PMI that it speaks, the usual one first; of two names the first counts."""

DEFAULT = "default"
"""Stands for srun without the option: the site's own choice."""


def listed_types(text: str) -> tuple[str, ...]:
    r"""Types in the output of `srun --mpi=list`, of old and new Slurms.

    Example:
        >>> listed_types("MPI plugin types are...\n\tnone\n\tpmix\nspecific pmix plugin versions available: pmix_v4")
        ('pmix', 'pmix_v4')
        >>> listed_types("srun: MPI types are...\nsrun: pmi2\nsrun: none")
        ('pmi2',)
    """
    words = re.findall(r"^\s*(?:srun:)?\s*(\w+)\s*$", text, re.MULTILINE)
    for versions in re.findall(r"available:(.*)$", text, re.MULTILINE):
        words += re.findall(r"\w+", versions)
    return tuple(word for word in dict.fromkeys(words) if word != "none")


def candidates(library: str, listed: tuple[str, ...]) -> tuple[str, ...]:
    """What to try, best first: what the library speaks, the site's default, then all else that Slurm has.

    Example:
        >>> candidates("Open MPI v5.0.6", ("cray_shasta", "pmi2", "pmix"))
        ('pmix', 'pmi2', 'default', 'cray_shasta')
        >>> candidates("Something new 1.0", ("pmix",))
        ('default', 'pmix')
    """
    known = next((types for name, types in PREFERRED.items() if name.lower() in library.lower()), ())
    spoken = [kind for kind in known if kind in listed]
    return tuple(dict.fromkeys((*spoken, DEFAULT, *listed)))


def loaded_library() -> str:
    """Name and version of the MPI that mpi4py loads, which is not started.

    Raises:
        UserError: If mpi4py or the library is missing.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"--executor mpi needs mpi4py and an MPI library ({str(error).splitlines()[0]}); load the site's MPI "
            "module and `pip install 'hpcmpq[mpi]'`, or submit with --executor array, which needs no MPI"
        ) from error
    lines = [line.strip() for line in MPI.Get_library_version().rstrip("\0").splitlines() if line.strip()]
    return " ".join(" ".join(lines[:1]).replace("Version:", "").split())


def two_ranks_meet() -> bool:
    """Whether this process is one of two ranks that can add up numbers."""
    world = started_mpi().COMM_WORLD
    return bool(world.Get_size() == 2 and world.allreduce(1 + world.Get_rank()) == 3)


def main(arguments: list[str]) -> int:
    """See the top of the file."""
    if not arguments:
        return 0 if two_ranks_meet() else 1
    try:
        library = loaded_library()
    except UserError as error:
        sys.stderr.write(f"hpcmpq: {error}\n")
        return exit_status(error)
    print("\n".join([library, *candidates(library, listed_types(arguments[0]))]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
