"""What a plan says about the package that made it."""

import subprocess
from pathlib import Path

import pytest

from hpcmpq.planning import facts


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_commit_is_named_where_the_package_is_tracked_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not that of a repository whose folder holds the environment."""
    (tmp_path / ".venv").mkdir()
    for name in ("facts.py", ".venv/facts.py"):
        (tmp_path / name).write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "facts.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(facts, "__file__", str(tmp_path / "facts.py"))
    assert facts.find_environment()["commit"] == git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(facts, "__file__", str(tmp_path / ".venv" / "facts.py"))
    assert facts.find_environment()["commit"] == "unknown"
