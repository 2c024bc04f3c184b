"""`hpcmpq doctor` on machines that lack this or that."""

import json
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcmpq.cli import app
from hpcmpq.cli.json_output import Reported
from hpcmpq.doctor import examine, libraries, site
from hpcmpq.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def commands(monkeypatch: pytest.MonkeyPatch, *present: str, **answers: str) -> None:
    """A machine that has these commands, which print these answers."""
    monkeypatch.setattr(
        shutil, "which", lambda name, path=None: f"/bin/{name}" if name in present and path is None else None
    )
    for module in (libraries, site):
        monkeypatch.setattr(module, "ask", lambda command, timeout_s=0: answers.get(Path(command[0]).name))


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(libraries, "version", version)


def imports(monkeypatch: pytest.MonkeyPatch, printed: str | None, error: str = "") -> None:
    monkeypatch.setattr(libraries, "_import", lambda code: (printed, error))


def test_needed_versions_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert needed is not None
    assert dict(re.findall(r'"([^">]+)>=([\d.]+)', needed[1])) == libraries.REQUIRED
    assert f'requires-python = ">={".".join(map(str, libraries.MIN_PYTHON))}"' in text


def test_old_python_is_wrong():
    assert libraries.check_python((3, 9)).broken
    assert not libraries.check_python((3, 10)).broken


def test_needed_package_missing_or_old(monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, rich="12.9", numpy="10.0.0", torch="2.13.0+cpu")
    assert (libraries.check_package("h5py").state, libraries.check_package("rich").state) == (
        "missing",
        "wrong",
    )
    assert libraries.check_package("h5py").broken
    assert libraries.check_package("numpy").state == libraries.check_package("torch").state == "ok"


def test_package_that_cannot_be_imported_is_wrong(monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, h5py="3.16.0")
    check = libraries.check_import(
        "h5py", "import sys; sys.exit('libhdf5.so.310: cannot open shared object file')"
    )
    assert check.broken
    assert "libhdf5.so.310" in check.found
    assert libraries.check_import("h5py", "print('advice'); print('HDF5 2.0')").found == "3.16.0, HDF5 2.0"


@pytest.mark.parametrize(
    ("printed", "driver", "state"),
    [
        ("CUDA 12.8 with NVIDIA H100", "GPU 0: NVIDIA H100", "ok"),
        ("built without CUDA", "GPU 0: NVIDIA H100", "wrong"),
        ("built without CUDA", None, "missing"),
    ],
)
def test_gpu(monkeypatch: pytest.MonkeyPatch, printed: str, driver: str | None, state: str):
    versions(monkeypatch, torch="2.13.0")
    imports(monkeypatch, printed)
    if driver is None:
        commands(monkeypatch)
    else:
        commands(monkeypatch, "nvidia-smi", **{"nvidia-smi": driver})
    torch, cuda = libraries.check_torch()
    assert (torch.state, cuda.state, cuda.broken) == ("ok", state, False)


def test_mpiexec_of_another_mpi_is_wrong(monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, mpi4py="4.1.0")
    imports(monkeypatch, "MPICH Version: 5.0.2")
    commands(monkeypatch, "mpiexec", mpiexec="mpiexec (OpenRTE) 4.1.4")
    assert [check.state for check in libraries.check_mpi()] == ["ok", "wrong"]
    commands(monkeypatch, "mpiexec", mpiexec="HYDRA build details:")
    assert [check.state for check in libraries.check_mpi()] == ["ok", "ok"]


def test_mpi4py_without_a_library_is_wrong_and_without_itself_missing(monkeypatch: pytest.MonkeyPatch):
    commands(monkeypatch)
    versions(monkeypatch, mpi4py="4.1.0")
    imports(monkeypatch, None, "ImportError: libmpi.so.12")
    assert [check.state for check in libraries.check_mpi()] == ["wrong", "missing"]
    versions(monkeypatch)
    assert [check.state for check in libraries.check_mpi()] == ["missing", "missing"]


def test_slurm(monkeypatch: pytest.MonkeyPatch):
    commands(monkeypatch)
    assert site.check_slurm()[0].state == "missing"
    commands(monkeypatch, "srun")
    assert "sbatch" in site.check_slurm()[0].found
    commands(monkeypatch, *site.SLURM_COMMANDS, scontrol="Slurmctld(primary) at login is DOWN")
    assert site.check_slurm()[0].state == "wrong"
    commands(
        monkeypatch, *site.SLURM_COMMANDS, scontrol="Slurmctld(primary) at login is UP", sbatch="slurm 23"
    )
    assert (site.check_slurm()[0].state, site.check_slurm()[0].found) == ("ok", "slurm 23")


def test_deepspeed_needs_a_compiler(monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, deepspeed="0.19")
    commands(monkeypatch)
    assert libraries.check_deepspeed()[0].state == "wrong"
    commands(monkeypatch, "g++")
    assert libraries.check_deepspeed()[0].state == "ok"


def test_directory_is_tried_and_left_as_it_was(tmp_path: Path):
    checks = site.check_directory(tmp_path / "not" / "yet")
    assert [check.name for check in checks] == ["rename and fsync", "free space"]
    assert checks[0].state == "ok"
    assert str(tmp_path) in checks[0].found
    assert list(tmp_path.iterdir()) == []


def test_directory_whose_files_cannot_be_renamed_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "replace", refuse)
    check = site.check_directory(tmp_path)[0]
    assert check.broken
    assert "Operation not supported" in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_directory_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert site.check_directory(tmp_path)[0].state == "ok"
    monkeypatch.setattr(os, "open", refuse)
    assert site.check_directory(tmp_path)[0].broken


def test_little_room_is_wrong(tmp_path: Path):
    assert site.check_space(tmp_path, 10**8).broken
    assert not site.check_space(tmp_path, 10**10).broken


def test_a_file_is_no_directory(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        examine(tmp_path / "file")


def test_command_says_what_is_broken_and_forgives_what_is_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands(monkeypatch)
    imports(monkeypatch, "loads")
    versions(monkeypatch, **libraries.REQUIRED)
    runner = CliRunner()
    good = runner.invoke(app, ["doctor", "--directory", str(tmp_path), "--json"])
    assert good.exit_code == 0, good.output
    states = {check["name"]: check["state"] for check in json.loads(good.stdout)}
    assert states["ray"] == states["Slurm"] == "missing"
    assert {name for name, state in states.items() if state == "ok"} > set(libraries.REQUIRED)
    versions(monkeypatch, **{**libraries.REQUIRED, "h5py": "2.0"})
    bad = runner.invoke(app, ["doctor", "--directory", str(tmp_path)])
    assert isinstance(bad.exception, Reported)
    assert bad.exception.values[0].keys() == json.loads(good.stdout)[0].keys()
    assert "h5py" in str(bad.exception)
    assert "pip install 'h5py>=3.11'" in bad.output
