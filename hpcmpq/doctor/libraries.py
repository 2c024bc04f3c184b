"""Python and its packages: installed, new enough, and importable in a process of their own."""

import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hpcmpq.doctor.check import TIMEOUT_S, Diagnosis, ask

MIN_PYTHON = (3, 10)
REQUIRED = {
    "torch": "2.6", "transformers": "4.56", "accelerate": "1.0", "safetensors": "0.4.5", "numpy": "1.26",
    "h5py": "3.11", "scipy": "1.11", "threadpoolctl": "3.1", "ortools": "9.11", "pydantic": "2.7", "typer": "0.12",
    "rich": "13", "PyYAML": "6",
}  # fmt: skip
"""Packages that every run needs and their least versions, as in pyproject.toml."""

_TORCH = """
import torch
found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(f"CUDA {torch.version.cuda} with {', '.join(found)}" if found else
      "built without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda} finds no device")
"""
H5PY = "import h5py; print('HDF5', h5py.version.hdf5_version)"
ORTOOLS = (
    "from ortools.math_opt.python import mathopt; from ortools.sat.python import cp_model; print('loads')"
)
_MPI4PY = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version().split(chr(10))[0].strip(chr(0)))
"""


def check_python(running: tuple[int, ...]) -> Diagnosis:
    """The interpreter's version."""
    found = f"{platform.python_version()} at {sys.executable}"
    if running < MIN_PYTHON:
        least = ".".join(map(str, MIN_PYTHON))
        return Diagnosis(
            "Python", "wrong", found, f"make a virtual environment with Python {least} or newer", True
        )
    return Diagnosis("Python", "ok", found, needed=True)


def check_package(name: str) -> Diagnosis:
    """A package that every run needs, by its installed version."""
    least = REQUIRED[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        return Diagnosis(name, "missing", "not installed", "pip install hpcmpq brings it", True)
    if _numbers(found) < _numbers(least):
        return Diagnosis(name, "wrong", f"{found} is too old", f"pip install '{name}>={least}'", True)
    return Diagnosis(name, "ok", found, needed=True)


def check_torch() -> list[Diagnosis]:
    """Torch, and whether it can use the GPUs that the driver shows."""
    check = check_import("torch", _TORCH)
    if check.state != "ok":
        return [check]
    if " with " in check.found:
        return [check, Diagnosis("CUDA", "ok", check.found)]
    if shutil.which("nvidia-smi") and (shown := ask(["nvidia-smi", "-L"])) is not None and "GPU" in shown:
        fix = "install the build of torch for your CUDA, or a driver new enough for this one"
        return [check, Diagnosis("CUDA", "wrong", f"nvidia-smi shows a GPU, torch says: {check.found}", fix)]
    return [check, Diagnosis("CUDA", "missing", "no NVIDIA GPU here", "nothing, unless this machine has one")]


def check_mpi() -> list[Diagnosis]:
    """mpi4py with its library, and an mpiexec that belongs to it."""
    package = check_extra("mpi4py", "mpi", "--executor mpi")
    launcher = shutil.which("mpiexec") or shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    if package.state == "ok":
        library, error = _import(_MPI4PY)
        if library is None:
            fix = "load the site's MPI module, or on one machine pip install 'hpcmpq[mpi-wheel]'"
            package = Diagnosis("mpi4py", "wrong", f"{package.found} finds no MPI library: {error}", fix)
        else:
            package = Diagnosis("mpi4py", "ok", f"{package.found}, {library}")
    if launcher is None:
        fix = "load the site's MPI module, pip install 'hpcmpq[mpi-wheel]', or use srun"
        return [package, Diagnosis("mpiexec", "missing", "no such command", fix)]
    theirs = mpi_family(ask([launcher, "--version"]) or "")
    ours = mpi_family(package.found)
    if package.state == "ok" and theirs and ours and theirs != ours:
        fix = f"put the mpiexec of {ours} first in PATH, or build mpi4py with {theirs}"
        return [package, Diagnosis("mpiexec", "wrong", f"{launcher} is {theirs}, mpi4py loads {ours}", fix)]
    return [package, Diagnosis("mpiexec", "ok", f"{launcher}{f' of {theirs}' if theirs else ''}")]


def mpi_family(text: str) -> str:
    """Which MPI a version text comes from; empty if none is recognised.

    Example:
        >>> mpi_family("HYDRA build details:"), mpi_family("Open MPI v5.0.3"), mpi_family("prterun 3.0")
        ('MPICH', 'Open MPI', 'Open MPI')
    """
    signs = {"Intel": "Intel MPI", "Open MPI|OpenRTE|prte": "Open MPI", "MPICH|HYDRA": "MPICH"}
    return next((name for sign, name in signs.items() if re.search(sign, text)), "")


def check_extra(name: str, extra: str, purpose: str) -> Diagnosis:
    """An optional package, by its installed version."""
    try:
        return Diagnosis(name, "ok", version(name))
    except PackageNotFoundError:
        return Diagnosis(name, "missing", "not installed", f"pip install 'hpcmpq[{extra}]' for {purpose}")


def check_deepspeed() -> list[Diagnosis]:
    """DeepSpeed, and the compiler that it builds its operators with."""
    check = check_extra("deepspeed", "deepspeed", "evaluate --engine deepspeed")
    if check.state != "ok":
        return [check]
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        fix = "install a C++ compiler or load its module"
        return [
            Diagnosis("deepspeed", "wrong", f"{check.found}, no C++ compiler to build its operators", fix)
        ]
    return [check]


def check_import(name: str, code: str) -> Diagnosis:
    """A needed package, by version and by what a process that imports it prints."""
    check = check_package(name)
    if check.state != "ok":
        return check
    printed, error = _import(code)
    if printed is None:
        return Diagnosis(
            name,
            "wrong",
            f"{check.found} cannot be imported: {error}",
            f"reinstall it: pip install {name}",
            True,
        )
    return Diagnosis(name, "ok", f"{check.found}, {printed}", needed=True)


def _import(code: str) -> tuple[str | None, str]:
    """(last line that the code prints, "") or (None, last line of its error)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"it took more than {TIMEOUT_S:g} s"
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    last = lines[-1] if lines else f"exit status {done.returncode}"
    return (None, last) if done.returncode else (last, "")


def _numbers(text: str) -> tuple[int, ...]:
    """(2, 13, 0) of ``2.13.0+cpu``."""
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])
