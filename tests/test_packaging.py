"""pyproject.toml, constraints.txt, environment.yml and the README name the same things."""

import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

# What `all` leaves out, and why: a cluster's own MPI must not be shadowed; lm-eval brings thirty packages for one
# type of task, tracking fourteen for one command; wheels of mlx want glibc 2.35; the others are for developers.
NOT_IN_ALL = {"mpi-wheel", "lm-eval", "tracking", "mlx", "test", "docs", "all"}


def pins(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "--"))]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text().splitlines())


def requirements_of(*extras: str) -> dict[str, Requirement]:
    """Direct requirements of the package with some extras, by name; our own name is expanded."""
    found: dict[str, Requirement] = {}
    pending = [Requirement(line) for line in PROJECT["dependencies"]]
    pending += [Requirement(line) for extra in extras for line in EXTRAS[extra]]
    while pending:
        requirement = pending.pop()
        if requirement.name == PROJECT["name"]:
            pending += [Requirement(line) for extra in requirement.extras for line in EXTRAS[extra]]
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def pip_lines() -> list[str]:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [lines] = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return lines


def test_every_direct_dependency_has_one_tested_version_within_its_range():
    for name, requirement in requirements_of(*EXTRAS).items():
        if requirement.marker is not None and "python_version <" in str(requirement.marker):
            continue  # only on Pythons older than the tested one
        [specifier] = CONSTRAINTS[name].specifier
        assert specifier.operator == "==", name
        assert requirement.specifier.contains(specifier.version), name


def test_conda_environment_lists_the_constraints_versions():
    listed = pins(pip_lines())
    for name, requirement in listed.items():
        assert requirement.specifier == CONSTRAINTS[name].specifier, name


def test_conda_environment_lists_everything_a_user_needs_and_nothing_else():
    listed = pins(pip_lines())
    wanted = requirements_of("all", "mpi-wheel")
    assert set(listed) == set(wanted)
    assert {name: listed[name].extras for name in listed} == {name: wanted[name].extras for name in wanted}


def test_conda_environment_names_the_python_that_constraints_were_tested_with():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    [python] = [entry for entry in dependencies if str(entry).startswith("python=")]
    version = python.removeprefix("python=")
    assert f"on Python {version}" in (ROOT / "constraints.txt").read_text()
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)


def test_extra_all_holds_every_extra_for_users():
    [everything] = [Requirement(line) for line in EXTRAS["all"]]
    assert everything.extras == set(EXTRAS) - NOT_IN_ALL


def test_readme_install_commands_name_existing_extras_and_use_the_constraints():
    commands = re.findall(r"^.*pip install.*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    named = [
        extra
        for command in commands
        for found in re.findall(r"\.\[([^\]]+)\]", command)
        for extra in found.split(",")
    ]
    assert named
    assert set(named) <= set(EXTRAS)
    assert all("constraints.txt" in command for command in commands)


def test_ci_runs_the_command_of_the_readme():
    between = re.search(
        r"<!-- test-command -->\n```bash\n(.*)\n```\n<!-- /test-command -->", (ROOT / "README.md").read_text()
    )
    assert between is not None
    install, _, test = between[1].rpartition(" && ")
    assert "pip install -q -c constraints.txt -e '.[all,mpi-wheel,test]'" in install
    assert test == ".venv/bin/python -m pytest -q"


def test_version_is_in_the_changelog():
    import hpcmpq

    assert f"## [{hpcmpq.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_data_file_of_the_package_is_installed():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "hpcmpq"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in (Path(name) for name in listed.stdout.split("\0") if name and not name.endswith(".py")):
        package = ".".join(path.parent.parts)
        assert any(path.match(pattern) for pattern in patterns.get(package, [])), path


def test_what_loads_the_exports_comes_with_them():
    """`docs/export.md` loads what the package wrote; llama.cpp alone, which is compiled, is left to its users."""
    assert {"compressed-tensors", "onnxruntime", "gguf", "transformers"} <= set(requirements_of("export"))


def test_citations_name_this_version_and_license():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    described = json.loads((ROOT / "codemeta.json").read_text())
    [version] = re.findall(r'^__version__ = "(.*)"$', (ROOT / "hpcmpq/__init__.py").read_text(), re.MULTILINE)
    assert cited["version"] == described["version"] == version
    assert cited["license"] == PROJECT["license"]
    assert described["license"].endswith(f"/{PROJECT['license']}")
    assert described["description"] == PROJECT["description"]
    assert cited["keywords"] == described["keywords"] == PROJECT["keywords"]


def test_container_takes_what_the_package_is_built_from_and_extras_that_exist():
    recipe = (ROOT / "containers/hpcmpq.def").read_text()
    [files] = re.findall(r"^%files\n((?:    .*\n)+)", recipe, re.MULTILINE)
    taken = [line.split()[0] for line in files.splitlines()]
    assert all((ROOT / name).exists() for name in taken)
    assert {"hpcmpq", "slurm", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(taken)
    [extras] = re.findall(r"'\.\[(.*)\]'", recipe)
    assert set(extras.split(",")) <= set(EXTRAS)
