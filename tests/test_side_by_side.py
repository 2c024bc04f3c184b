"""Groups of tests stay in one worker each, and files that are named need none: shown on a handful of tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]

TESTS = """
import pytest

@pytest.fixture(scope="module")
def shared(): return 1

@pytest.fixture(scope="session")
def cluster(): return 1

@pytest.mark.parametrize("n", range(3))
def test_alone(n): pass

@pytest.mark.parametrize("n", range(3))
def test_sharing(n, shared): pass

@pytest.mark.ray
@pytest.mark.parametrize("n", range(3))
def test_ray(n): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.parametrize("n", range(3))
def test_slurm(n, cluster): pass
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "conftest.py").write_text("from tests.side_by_side import *\n")
    (folder / "test_some.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  quick\n  ray\n  slow\n")
    return folder


def ran(project: Path, *arguments: str) -> list[tuple[str, str]]:
    """(worker, test) in the order in which tests ended; the worker of this process has no name."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "auto"]
    done = subprocess.run(
        [*command, "--dist", "loadscope", "--no-loadscope-reorder", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    side_by_side = re.findall(r"^\[(gw\d)\] .*PASSED .*::(\S+)", done.stdout, flags=re.MULTILINE)
    alone = re.findall(r"^\S+::(\S+) PASSED", done.stdout, flags=re.MULTILINE)
    return side_by_side or [("", name) for name in alone]


def test_groups_stay_together_and_the_longest_begin(project: Path):
    tests = ran(project, ".")
    assert len(tests) == 13
    workers = {
        kind: {worker for worker, name in tests if name.startswith(f"test_{kind}")}
        for kind in ("slurm", "ray", "sharing")
    }
    assert all(len(found) == 1 for found in workers.values())
    own = [[name for worker, name in tests if worker == f"gw{number}"] for number in range(3)]
    slurm, ray = [f"test_slurm[{n}]" for n in range(3)], [f"test_ray[{n}]" for n in range(3)]
    launched = [names[:3] for names in own if names[0] in (slurm[0], ray[0])]
    assert launched in ([slurm, ray], [ray, slurm])
    assert sum(names[0] == "test_slow" for names in own) == 1, "the first groups run side by side"


def test_named_files_run_in_this_process_in_the_order_in_which_they_stand(project: Path):
    tests = ran(project, "test_some.py")
    assert tests[0] == ("", "test_alone[0]") and len(tests) == 13


def test_quick_tests_start_nothing_and_are_not_slow(project: Path):
    assert {name.partition("[")[0] for _, name in ran(project, "test_some.py", "-m", "quick")} == {
        "test_alone",
        "test_sharing",
    }
