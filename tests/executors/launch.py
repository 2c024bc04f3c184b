"""Starting commands under an executor, as a user would, and cleaning up after them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
NO_MPI = (
    "mpi4py is not installed"
    if find_spec("mpi4py") is None
    else "there is no mpiexec"
    if MPIEXEC is None
    else None
)
NO_RAY = "ray is not installed" if find_spec("ray") is None else None

MARKS = {
    "local": (),
    "mpi": (pytest.mark.mpi, pytest.mark.skipif(NO_MPI is not None, reason=str(NO_MPI))),
    "ray": (pytest.mark.ray, pytest.mark.skipif(NO_RAY is not None, reason=str(NO_RAY))),
}


def command_line(executor: str, module: str, *arguments: object) -> list[str]:
    """`python -m module arguments`, under mpiexec with three ranks for MPI."""
    launcher = [str(MPIEXEC), "-n", "3"] if executor == "mpi" else []
    return [*launcher, sys.executable, "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Of commands that tests start: one thread each, and this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(command: Sequence[str], timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run to the end; an end that does not come within `timeout_s` fails the test."""
    with mpich_memory_freed():
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@contextmanager
def mpich_memory_freed() -> Iterator[None]:
    """Remove what aborted MPICH jobs that started inside leave in /dev/shm, and no live process maps."""
    folder = Path("/dev/shm")
    before = set(folder.glob("mpich_shm_*"))
    try:
        yield
    finally:
        for path in set(folder.glob("mpich_shm_*")) - before:
            if not _is_mapped(path):
                path.unlink(missing_ok=True)


def _is_mapped(path: Path) -> bool:
    """Whether a live process, perhaps of another test run, uses a file in shared memory."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False
