"""`.ci/run` leaves nothing in sight that an earlier run left: shown by what its checks would see."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / ".ci").iterdir())

CHECKS = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
listed = {str(folder): sorted(os.listdir(folder)) for folder in map(Path, ("/tmp", "/var/tmp", "/dev/shm", "."))}
home = [str(path.relative_to(Path.home())) for path in Path.home().rglob("*") if path.is_file()]
processes = [name for name in os.listdir("/proc") if name.isdigit()]
words = {"listed": listed, "home": sorted(home), "variables": dict(os.environ), "arguments": sys.argv[1:],
         "python": sys.executable, "processes": len(processes), "here": os.getcwd(), "temporary":
         os.listdir(os.environ["TMPDIR"]), "committed": os.popen("git log --format=%s").read().strip()}
print(json.dumps(words))
sys.exit(7)
"""
"""In place of `.ci/checks`."""


def git(*words: str, cwd: Path) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with these scripts, something not committed, something that git ignores and something deleted."""
    path = tmp_path / "checkout"
    shutil.copytree(ROOT / ".ci", path / ".ci")
    (path / ".ci" / "checks").write_text(CHECKS)
    (path / ".gitignore").write_text(".venv/\nruns/\n")
    (path / "deleted").touch()
    (path / "changed").write_text("before")
    git("init", "-q", cwd=path)
    git("add", ".", cwd=path)
    git("commit", "-q", "-m", "first", cwd=path)
    (path / "deleted").unlink()
    (path / "changed").write_text("after")
    (path / "new").touch()
    for ignored in (".venv/bin", "runs/old"):
        (path / ignored).mkdir(parents=True)
        (path / ignored / "left").touch()
    return path


def run(checkout: Path, *arguments: str, **variables: str) -> tuple[dict, str]:
    """What the checks saw, and what `.ci/run` said; its exit status is theirs."""
    done = subprocess.run(
        [checkout / ".ci" / "run", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    return json.loads(done.stdout), done.stderr


def test_checks_see_what_git_would_add_and_no_old_environment(checkout: Path):
    saw, _ = run(checkout, "-m", "ray or mpi")
    assert saw["listed"]["."] == [".ci", ".git", ".gitignore", "changed", "new"]
    assert saw["committed"] == "first"
    assert saw["arguments"] == ["-m", "ray or mpi"]
    assert saw["here"] != str(checkout) and not Path(saw["here"]).exists(), "the copy is gone afterwards"
    assert (checkout / ".venv" / "bin" / "left").exists(), "and the checkout is as it was"


def test_checks_see_an_empty_home_and_only_variables_of_the_machine(checkout: Path, tmp_path: Path):
    left = {
        "HF_HOME": "/left",
        "PYTHONPATH": "/left",
        "TORCH_EXTENSIONS_DIR": "/left",
        "RAY_ADDRESS": "left:1",
    }
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\nretries = 7\n")
    (home / ".cache").mkdir()
    saw, _ = run(
        checkout, **left, HOME=str(home), XDG_CACHE_HOME="/left", PIP_RETRIES="7", LC_ALL="C",
        PATH=f"{home / 'bin'}{os.pathsep}{checkout / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    variables = saw["variables"]
    assert not set(left) & set(variables)
    assert (variables["PIP_RETRIES"], variables["LC_ALL"]) == ("7", "C"), "the machine's own ways stay"
    assert saw["home"] == [".gitconfig", "config/pip/pip.conf"]
    assert saw["temporary"] == [] or set(saw["temporary"]) == set(saw["listed"]["/tmp"])
    assert str(home) not in json.dumps(variables) and str(checkout) not in json.dumps(variables)
    assert variables["XDG_CACHE_HOME"].startswith(variables["HOME"])


def test_python_is_the_interpreter_itself(checkout: Path):
    saw, _ = run(checkout)
    assert Path(saw["python"]).resolve() == Path(saw["python"])
    version = subprocess.run(["python3", "-V"], capture_output=True, text=True, check=True).stdout
    assert version == subprocess.run([saw["python"], "-V"], capture_output=True, text=True, check=True).stdout


def test_for_root_shared_folders_are_empty_and_processes_out_of_sight(checkout: Path):
    saw, said = run(checkout)
    if said:
        pytest.skip(said.strip())
    [fresh] = saw["listed"]["/var/tmp"]
    assert saw["here"].startswith(f"/var/tmp/{fresh}/")
    assert saw["listed"]["/dev/shm"] == []
    kept = [Path(sys.base_prefix).parts[2]] if sys.base_prefix.startswith("/tmp/") else []
    assert saw["listed"]["/tmp"] == kept
    assert saw["processes"] < 10


def test_where_it_cannot_empty_them_it_says_so_and_goes_on(checkout: Path, tmp_path: Path):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "unshare").write_text("#!/bin/sh\nexit 1\n")
    (folder / "unshare").chmod(0o755)
    saw, said = run(checkout, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert "/tmp, /var/tmp and /dev/shm are as others left them" in said
    assert saw["temporary"] == [] and saw["variables"]["TMPDIR"] != "/tmp"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
