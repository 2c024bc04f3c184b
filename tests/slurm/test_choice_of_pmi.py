"""calibrate_mpi.sbatch finds out which `srun --mpi=` connects ranks, with an srun that only notes what it is told."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$*" in
    --mpi=list) printf 'MPI plugin types are...\\n\\tnone\\n\\tpmi2\\n\\tpmix\\n\\tcray_shasta\\n' ;;
    *hpcmpq.executors.pmi) echo "cannot meet"; [[ $* == *"$MEETS"* ]] ;;
esac
"""


def calibrate(tmp_path: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The job's script, and what srun was told."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "slurm/calibrate_mpi.sbatch"), "some/run"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("HPCMPQ", "SLURM"))},
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "NOTES": str(tmp_path / "notes"),
            "HPCMPQ_ENV": str(ROOT / "slurm/env.sh"), "HPCMPQ_PYTHON": sys.executable, "HPCMPQ_STAGE_MODEL": "0",
            "SLURM_NTASKS": "3", **environment,
        },
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done, (tmp_path / "notes").read_text().splitlines()


@pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed")
def test_the_first_that_connects_two_ranks_calibrates(tmp_path: Path):
    done, notes = calibrate(tmp_path, MEETS="--mpi=cray_shasta")
    assert done.returncode == 0, done.stderr
    tried = [note.split()[1] for note in notes if note.endswith("hpcmpq.executors.pmi")]
    assert tried[-1] == "--mpi=cray_shasta" and {"--mpi=pmi2", "--mpi=pmix", "--overlap"} == set(tried[:-1])
    assert all("--ntasks=2" in note for note in notes if note.endswith("hpcmpq.executors.pmi"))
    assert "--mpi=cray_shasta connects two ranks of " in done.stdout
    assert "--mpi=pmi2 does not connect two ranks of " in done.stdout and ": cannot meet" in done.stdout
    assert notes[-1].endswith("-m mpi4py -m hpcmpq calibrate some/run --executor mpi")
    assert "--mpi=cray_shasta" in notes[-1]


@pytest.mark.skipif(find_spec("mpi4py") is None, reason="mpi4py is not installed")
def test_where_none_does_the_job_ends_before_calibrating(tmp_path: Path):
    done, notes = calibrate(tmp_path, MEETS="--mpi=none_such")
    assert done.returncode == 2
    assert "submit with --executor array, which needs no MPI" in done.stderr
    assert not [note for note in notes if "calibrate" in note]


def test_what_the_site_says_is_not_tried(tmp_path: Path):
    done, notes = calibrate(tmp_path, MEETS="--mpi=none_such", HPCMPQ_MPI="pmi2")
    assert done.returncode == 0, done.stderr
    [note] = notes
    assert "--mpi=pmi2" in note and "calibrate some/run" in note
