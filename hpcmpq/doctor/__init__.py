"""What a run needs of this machine, looked at part by part: `hpcmpq doctor`.

Libraries are looked up in the installed packages, or imported in processes of their own: one that hangs or crashes
is a finding, and nothing heavy is loaded here.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpcmpq.doctor import libraries, site
from hpcmpq.doctor.check import Diagnosis
from hpcmpq.errors import UserError


def examine(directory: Path) -> list[Diagnosis]:
    """All checks, several at a time; `directory` is where run directories are to lie.

    Raises:
        UserError: If `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; name the directory in which run directories are to lie")
    parts: tuple[Callable[[], list[Diagnosis]], ...] = (
        lambda: [libraries.check_python(sys.version_info[:2])],
        lambda: [
            libraries.check_package(name)
            for name in libraries.REQUIRED
            if name not in ("torch", "h5py", "ortools")
        ],
        libraries.check_torch,
        lambda: [libraries.check_import("h5py", libraries.H5PY)],
        lambda: [libraries.check_import("ortools", libraries.ORTOOLS)],
        libraries.check_mpi,
        lambda: [libraries.check_extra("ray", "ray", "--executor ray")],
        site.check_slurm,
        libraries.check_deepspeed,
        lambda: site.check_directory(directory),
    )
    with ThreadPoolExecutor(2) as pool:
        return [check for found in pool.map(lambda part: part(), parts) for check in found]
