"""What a site installs the package with, which says what pyproject.toml says: module files, Spack, EasyBuild."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hpcmpq
from tests.test_packaging import EXTRAS, PROJECT, ROOT

KIT = ROOT / "containers"
SPACK, EASYBUILD = KIT / "spack/package.py", KIT / "easybuild/hpcmpq-0.1.0-foss-2025a.eb"
LUA, MODULECMD = (
    shutil.which("lua5.4") or shutil.which("lua"),
    Path("/usr/lib/x86_64-linux-gnu/modulecmd.tcl"),
)
SETTINGS = {
    "VIRTUAL_ENV": "/apps/hpcmpq/0.1.0",
    "HPCMPQ_ENV": "/apps/hpcmpq/0.1.0/share/hpcmpq/slurm/env.sh",
    "HF_HUB_OFFLINE": "1",
    "HDF5_USE_FILE_LOCKING": "FALSE",
}
"""What both module files set."""

STUB = """
help, whatis, conflict = print, print, print
function pathJoin(...) return (table.concat({...}, "/"):gsub("//+", "/")) end
function setenv(name, value) print("set " .. name .. "=" .. value) end
function prepend_path(name, value) print("prepend " .. name .. "=" .. value) end
dofile(arg[1])
"""


def lower_bound(requirement: Requirement) -> str:
    return next(each.version for each in requirement.specifier if each.operator == ">=")


class Spack:
    """Stands for `spack.package`: notes the directives of a package."""

    def __init__(self) -> None:
        self.depends: dict[str, tuple[str, str | None]] = {}
        self.variants: set[str] = set()

    def run(self, monkeypatch: pytest.MonkeyPatch) -> type:
        package = ModuleType("spack.package")
        vars(package).update(
            license=lambda name: None,
            version=lambda name, **known: None,
            variant=lambda name, *, default, description: self.variants.add(name),
            depends_on=self.depends_on,
        )
        systems = ModuleType("spack_repo.builtin.build_systems.python")
        systems.PythonPackage = type("PythonPackage", (), {})
        monkeypatch.setitem(sys.modules, "spack", ModuleType("spack"))
        monkeypatch.setitem(sys.modules, "spack.package", package)
        for name in ("spack_repo", "spack_repo.builtin", "spack_repo.builtin.build_systems"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, systems.__name__, systems)
        names: dict[str, object] = {}
        exec(compile(SPACK.read_text(), str(SPACK), "exec"), names)
        made = names["PyHpcmpq"]
        assert isinstance(made, type)
        return made

    def depends_on(self, spec: str, *, type: object, when: str | None = None) -> None:
        name, _, versions = spec.partition("@")
        self.depends[name.removeprefix("py-")] = versions, when


def test_spack_asks_for_what_pip_does(monkeypatch: pytest.MonkeyPatch):
    found = Spack()
    package = found.run(monkeypatch)
    assert package.__doc__ == PROJECT["description"]
    assert found.variants <= set(EXTRAS)
    wanted = {canonicalize_name(r.name): (r, None) for r in map(Requirement, PROJECT["dependencies"])}
    for variant in found.variants:
        for requirement in map(Requirement, EXTRAS[variant]):
            wanted[canonicalize_name(requirement.name)] = requirement, f"+{variant}"
    asked = {name: each for name, each in found.depends.items() if name not in ("python", "setuptools")}
    assert asked.keys() == wanted.keys()
    for name, (requirement, when) in wanted.items():
        versions, condition = asked[name]
        lowest, _, highest = versions.partition(":")
        assert condition == when, name
        assert Version(lowest) == Version(lower_bound(requirement)), name
        below = [each.version for each in requirement.specifier if each.operator == "<"]
        # Spack's `:2` takes every 2.x.
        assert [str(int(each) - 1) for each in below] == ([highest] if highest else []), name
    assert found.depends["python"][0] == f"{lower_bound(Requirement('python' + PROJECT['requires-python']))}:"


def test_easybuild_brings_what_pip_asks_for():
    recipe: dict = {}
    exec(compile(EASYBUILD.read_text(), str(EASYBUILD), "exec"), {}, recipe)
    assert (recipe["name"], recipe["version"]) == (PROJECT["name"], hpcmpq.__version__)
    assert EASYBUILD.name == "{name}-{version}-{toolchain[name]}-{toolchain[version]}.eb".format(**recipe)
    assert recipe["description"] == PROJECT["description"]
    # EasyBuild's modules have names and versions of their own: scipy and numpy come with SciPy-bundle.
    known = {
        canonicalize_name(name): version for name, version, *_ in recipe["dependencies"] + recipe["exts_list"]
    }
    known |= {"torch": known["pytorch"], "numpy": "2.3.1", "scipy": "1.16.0"}
    assert "scipy-bundle" in known
    for requirement in map(Requirement, [*PROJECT["dependencies"], *EXTRAS["mpi"]]):
        assert requirement.specifier.contains(known[canonicalize_name(requirement.name)]), requirement


@pytest.mark.skipif(LUA is None, reason="there is no lua")
def test_the_module_file_of_lmod_sets_what_it_says(tmp_path: Path):
    (tmp_path / "stub.lua").write_text(STUB)
    command = [str(LUA), tmp_path / "stub.lua", KIT / "modules/hpcmpq.lua"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert dict(re.findall("^set (.*)=(.*)$", said, re.MULTILINE)) == SETTINGS
    assert "prepend PATH=/apps/hpcmpq/0.1.0/bin" in said and f"Version: {hpcmpq.__version__}" in said


@pytest.mark.skipif(not MODULECMD.exists(), reason="there are no Environment Modules")
def test_the_module_file_of_environment_modules_sets_what_it_says(tmp_path: Path):
    (tmp_path / "hpcmpq").mkdir()
    shutil.copy(KIT / "modules/hpcmpq.tcl", tmp_path / "hpcmpq" / hpcmpq.__version__)
    shell = 'eval "$("$0" sh load hpcmpq)"; env'
    environment = {"PATH": "/usr/bin:/bin", "MODULEPATH": str(tmp_path), "HOME": str(tmp_path)}
    said = subprocess.run(
        ["sh", "-c", shell, MODULECMD], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(line.partition("=")[::2] for line in said.stdout.splitlines())
    assert not said.stderr
    assert {name: found[name] for name in SETTINGS} == SETTINGS
    assert found["PATH"].split(":")[0] == "/apps/hpcmpq/0.1.0/bin"
