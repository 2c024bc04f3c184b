"""Batch scripts that are given several runs, on commands that stand in for those of Slurm and PBS."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.calling import ROOT

STAND_INS = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "mpiexec": 'shift 2; exec "$@"',
    "pbsdsh": 'shift 3; exec "$@"',
    "qstat": "",
    # Values of plans are read; of what would calibrate arguments and copies are printed, one a line.
    "python": f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi; printf "%s\\n" "$@"; '
    'echo "one: ${HPCMPQ_MODEL_DIR:-}"; echo "several: ${HPCMPQ_MODEL_COPIES:-}"',
}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Two runs of one model, one of another, and one whose plan is damaged."""
    paths = {}
    for name, model in (("a", "first"), ("b", "second one"), ("c", "first"), ("d", "")):
        path = tmp_path / name
        path.mkdir()
        (path / "plan.json").write_text(
            json.dumps({"config": {"model": {"path": str(tmp_path / "models" / model)}}}) if model else "{"
        )
        paths[name] = path
    for model in ("first", "second one"):
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "weights").write_text(model)
    return paths


def ended(script: str, tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script that came to its end among the commands that stand in."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "nodes").write_text("here\n")
    return subprocess.run(
        ["bash", str(ROOT / script), *map(str, arguments)],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "HPCMPQ_"))},
            "PATH": f"{folder}:{os.environ['PATH']}", "HPCMPQ_PYTHON": "python", "HPCMPQ_WORKERS": "1",
            "HPCMPQ_SCRATCH": str(tmp_path / "scratch"), "HPCMPQ_ENV": str(ROOT / "slurm" / "env.sh"),
            "SLURM_NNODES": "1", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_ARRAY_TASK_COUNT": "2", "PBS_JOBID": "1.pbs", "PBS_NODEFILE": str(tmp_path / "nodes"),
            "PBS_ARRAY_INDEX": "1", "HPCMPQ_TASKS": "2", "PYTHONPATH": str(ROOT),
        },
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def said(script: str, tmp_path: Path, *arguments: object) -> list[str]:
    """What the command of a script was given, a line for each argument, and which copies of models."""
    done = ended(script, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "script",
    [
        "slurm/calibrate_mpi.sbatch",
        "slurm/calibrate_array.sbatch",
        "jobs/pbs/calibrate_mpi.pbs",
        "jobs/pbs/calibrate_array.pbs",
    ],
)
def test_all_runs_are_given_on_with_a_copy_of_each_model(script: str, runs: dict[str, Path], tmp_path: Path):
    lines = said(script, tmp_path, *runs.values())
    start = lines.index("calibrate")
    assert lines[start + 1 : start + 5] == [str(path) for path in runs.values()]
    assert ("1/2" in lines) == ("array" in script)
    assert "one: " in lines
    pairs = [line.removeprefix("several: ").split("\t") for line in lines if "\t" in line]
    assert [Path(model).name for model, _ in pairs] == ["first", "second one"]
    for model, copy in pairs:
        assert Path(copy).is_relative_to(tmp_path / "scratch")
        assert (Path(copy) / "weights").read_text() == Path(model).name


@pytest.mark.parametrize("more", [[], ["calibrate"], ["refine"], ["reround"]])
@pytest.mark.parametrize("script", ["slurm/calibrate_array.sbatch", "jobs/pbs/calibrate_array.pbs"])
def test_one_run_is_given_on_as_ever(script: str, more: list[str], runs: dict[str, Path], tmp_path: Path):
    lines = said(script, tmp_path, runs["a"], *more)
    start = lines.index((more or ["calibrate"])[0])
    assert lines[start + 1 : start + 4] == [str(runs["a"]), "--executor", "local"]
    (copy,) = [line.removeprefix("one: ") for line in lines if line.startswith("one: ")]
    assert (Path(copy) / "weights").read_text() == "first" and "several: " in lines


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("slurm/calibrate_ray.sbatch", "Ray serves one run at a time; give one RUN, or several to "),
        ("slurm/evaluate.sbatch", "evaluate takes one run directory; give each a job of its own"),
        ("jobs/pbs/evaluate.pbs", "evaluate takes one run directory; give each a job of its own"),
    ],
)
def test_a_job_that_takes_one_run_refuses_several_before_it_starts_anything(
    script: str, sentence: str, runs: dict[str, Path], tmp_path: Path
):
    done = ended(script, tmp_path, runs["a"], runs["b"])
    assert done.returncode == 2 and done.stderr.startswith(f"hpcmpq: {sentence}") and not done.stdout
    assert not (tmp_path / "scratch").exists()
