"""What is submitted to PBS, word for word; what is refused; how a job goes on; where jobs stand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hpcmpq.batch.scheduler import chosen, scheduler_of
from hpcmpq.batch.status import read_status
from hpcmpq.batch.submit import make_files, make_jobs, submit_files
from hpcmpq.cli import app
from hpcmpq.errors import UserError
from hpcmpq.pbs.settings import KEYS, parse_settings
from hpcmpq.store.json_files import read_json
from hpcmpq.store.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = sorted(path for path in (ROOT / "jobs" / "pbs").iterdir())

CHAINS = {
    "mpi": ("mpi", ["queue=gpu account=abc", "select=4:ncpus=32:ngpus=4:mpiprocs=5", "solve.queue=cpu"]),
    "array": ("array", ["array=16%8", "walltime=1:00:00", "select=1:ncpus=8:mem=64gb"]),
    "sharded": (
        "mpi",
        ["select=2:ncpus=32:ngpus=4:mpiprocs=16", "evaluate.walltime=2:00:00", "refine.array=4"],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_is_as_in_the_golden_file(name: str, tmp_path: Path):
    executor, texts = CHAINS[name]
    run, settings = RunDir(tmp_path / "run"), parse_settings(texts, executor)
    jobs = make_jobs(run, executor, settings, refine=True, sharded=name == "sharded")
    script = scheduler_of("pbs").chain_script(run, jobs)
    shown = script.replace(str(tmp_path), "/home/me").replace(sys.executable, "/home/me/venv/bin/python")
    assert shown == (GOLDEN / f"submit_{name}.sh").read_text()
    assert all((ROOT / "jobs" / "pbs" / job.script).is_file() for job in jobs)


@pytest.mark.parametrize(
    ("executor", "text", "message"),
    [
        ("mpi", "quue=gpu", "unknown PBS setting 'quue'; did you mean 'queue'?"),
        ("mpi", "later.queue=gpu", "unknown PBS setting 'later.queue'"),
        ("mpi", "queue", "'queue' is not KEY=VALUE"),
    ],
)
def test_a_bad_setting_is_refused_with_the_list_of_all(executor: str, text: str, message: str):
    with pytest.raises(UserError) as caught:
        parse_settings([text], executor)
    assert message in str(caught.value) and all(key in str(caught.value) for key in (*KEYS, "env"))


@pytest.mark.parametrize(
    ("executor", "text", "message"),
    [
        ("mpi", "select=4:ncpus=8", "names no ranks; say how many each chunk gets"),
        ("mpi", "array=4", "array needs --executor array, not mpi"),
        ("array", "array=1", "array=1 is not a number of tasks above 1"),
        ("array", "finish.array=4", "only calibrate, refine and reround are shared out"),
        ("mpi", "env=/no/such", "no such file; copy slurm/env.sh"),
        ("ray", "queue=a", "unknown executor 'ray'; known: mpi, array, local"),
    ],
)
def test_settings_that_do_not_fit_are_refused(executor: str, text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_settings([text], executor)


def test_whoever_measures_gets_a_gpu_where_calibrate_alone_names_some():
    options = parse_settings(["calibrate.select=2:ncpus=8:ngpus=4:mpiprocs=5"], "mpi").options
    one, none = "1:ncpus=1:ngpus=1", "1:ncpus=1"
    assert [options[job]["select"] for job in ("solve", "refine", "reround", "finish")] == [
        none,
        one,
        one,
        one,
    ]


def test_the_settings_say_which_batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="settings of two batch systems"):
        chosen(["time=1"], ["walltime=1"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [chosen([], []), chosen([], ["queue=a"])] == ["slurm", "pbs"]
    command(tmp_path, "qsub", "")
    assert [chosen([], []), chosen(["time=1"], [])] == ["pbs", "slurm"]


def test_dry_run_prints_every_script(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(
        '{model: {factory: "hpcmpq.examples.digits:model"}, calibration: {data: "hpcmpq.examples.digits:calibration"}}'
    )
    words = [
        "submit",
        f"{tmp_path}/config.yaml",
        "--run-dir",
        f"{tmp_path}/run",
        "--pbs",
        "queue=a",
        "--dry-run",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    files = make_files(
        RunDir(tmp_path / "run"),
        tmp_path / "config.yaml",
        "mpi",
        ["queue=a"],
        False,
        refine=True,
        scheduler="pbs",
    )
    assert set(files) == {"env.sh", "pbs.sh", "submit.sh", "calibrate_mpi.pbs", "solve.pbs"}
    assert all(text in result.stdout for text in files.values())


def command(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A chain that was submitted to a qsub which notes what it is told and counts."""
    command(
        tmp_path / "bin",
        "qsub",
        f'echo "$HPCMPQ_STARTS $*" >>{tmp_path}/calls; wc -l <{tmp_path}/calls | sed s/$/.pbs/',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    run = RunDir(tmp_path / "run")
    files = make_files(run, Path("config.yaml"), "local", ["queue=a"], False, refine=False, scheduler="pbs")
    assert submit_files(run, files, "pbs") == {"calibrate": "1.pbs", "solve": "2.pbs", "finish": "3.pbs"}
    return run


def test_each_job_waits_for_the_one_before(submitted: RunDir, tmp_path: Path):
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "-W" not in calls[0] and "-W depend=afterok:1.pbs" in calls[1] and "afterok:2.pbs" in calls[2]
    assert all(call.startswith("1 -N hpcmpq-") and "-r y" in call for call in calls)
    assert read_json(submitted.jobs_path, "")["submissions"][-1]["scheduler"] == "pbs"


def test_jobs_get_the_variables_that_were_set_when_they_were_submitted(submitted: RunDir, tmp_path: Path):
    script, calls = ["bash", f"{submitted.path}/pbs/submit.sh"], tmp_path / "calls"
    always = "HPCMPQ_ENV,HPCMPQ_STARTS,HPCMPQ_SUBMIT_PYTHON,HPCMPQ_TASKS"

    def passed(*words: str, **variables: str) -> str:
        calls.write_text("")
        environment = {"PATH": os.environ["PATH"], "PBS_JOBNAME": "", **variables}
        subprocess.run([*script, *words], env=environment, check=True, capture_output=True)
        [*_, last] = calls.read_text().splitlines()
        return last.split(" -v ")[1].split()[0]

    assert passed() == f"{always},HPCMPQ_PASSED"
    first = passed(HPCMPQ_MAX_REQUEUES="3", HPCMPQ_WORKERS="2")
    assert set(first.split(",")) == {
        *always.split(","),
        "HPCMPQ_PASSED",
        "HPCMPQ_MAX_REQUEUES",
        "HPCMPQ_WORKERS",
    }
    # In a job HPCMPQ_SCRATCH and HPCMPQ_MODEL_DIR are set too, for its own node.
    again = passed(
        "solve", HPCMPQ_PASSED=f"{always},HPCMPQ_WORKERS", HPCMPQ_WORKERS="2", HPCMPQ_SCRATCH="/job/7"
    )
    assert again == f"{always},HPCMPQ_WORKERS,HPCMPQ_PASSED"


@pytest.mark.parametrize(
    ("variables", "workers"),
    [
        ({"CUDA_VISIBLE_DEVICES": "", "NCPUS": "8"}, "8"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "1"),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "NCPUS": "8"}, "0"),
        # Of ROCm's variables a torch for other GPUs knows nothing.
        pytest.param(
            {"CUDA_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": "0", "NCPUS": "8"},
            "8",
            marks=pytest.mark.skipif(bool(torch.version.hip), reason="torch is for AMD's GPUs"),
        ),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "HPCMPQ_WORKERS": "3", "NCPUS": "8"}, "3"),
    ],
)
def test_a_task_has_a_worker_a_gpu_or_a_core(
    variables: dict[str, str], workers: str, submitted: RunDir, tmp_path: Path
):
    command(tmp_path / "bin", "qstat", "")
    command(tmp_path / "bin", "python", f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi; echo "$*"')
    folder = submitted.path / "pbs"
    done = subprocess.run(
        ["bash", f"{folder}/calibrate_array.pbs", str(submitted.path)],
        env={
            "PATH": os.environ["PATH"], "HPCMPQ_ENV": f"{folder}/env.sh", "HPCMPQ_PYTHON": f"{tmp_path}/bin/python",
            "HPCMPQ_STAGE_MODEL": "0", "HPCMPQ_TASKS": "1", "PBS_JOBID": "1.pbs", **variables,
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["--workers", workers]


QSTAT = """cat <<'TEXT'
Job Id: 1.pbs
    Job_Name = hpcmpq-calibrate
    depend = beforeok:2.pbs@server.of.a.site.with.a.long.name:7.pbs@server.of.a.si
\tte.with.a.long.name
    Error_Path = a:/b
    Resource_List.walltime = 00:02:01
    run_count = 1
TEXT"""


@pytest.mark.parametrize("refused", ["1", "0"])
def test_a_job_that_is_warned_goes_on(refused: str, submitted: RunDir, tmp_path: Path):
    command(tmp_path / "bin", "qstat", QSTAT)
    command(tmp_path / "bin", "qrerun", f"exit {refused}")
    command(tmp_path / "bin", "qalter", f'echo "qalter $*" >>{tmp_path}/calls')
    folder = submitted.path / "pbs"
    until_warned = "run_resumable bash -c 'trap \"exit 75\" USR2; while :; do sleep 0.1; done'"
    code = f". {folder}/env.sh; . {folder}/pbs.sh; prepare_node; warn_before_limit; {until_warned}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env={
            **os.environ, "HPCMPQ_ENV": f"{folder}/env.sh", "HPCMPQ_PYTHON": sys.executable, "HPCMPQ_STARTS": "1",
            "PBS_JOBID": "1.pbs", "PBS_JOBNAME": "hpcmpq-calibrate",
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    calls = (tmp_path / "calls").read_text().splitlines()[3:]
    if refused == "0":
        assert done.returncode == 75 and "job 1.pbs is back in the queue" in done.stderr and not calls
        return
    assert done.returncode == 0 and "it goes on as job 4.pbs" in done.stderr
    assert calls[0].startswith("2 -N hpcmpq-calibrate ") and "-W" not in calls[0]
    assert calls[1:] == ["qalter -W depend=afterok:4.pbs 2.pbs", "qalter -W depend=afterok:4.pbs 7.pbs"]
    said = {"4.pbs": {"job_state": "R"}, "2.pbs": {"job_state": "H", "depend": "afterok:4.pbs@x"}}
    command(tmp_path / "bin", "qstat", f"""cat <<'TEXT'\n{json.dumps({"Jobs": said})}\nTEXT""")
    assert read_status(submitted).jobs == (
        ("calibrate", "1.pbs", "RUNNING"), ("solve", "2.pbs", "PENDING (Dependency)"), ("finish", "3.pbs", "unknown"),
    )  # fmt: skip


def test_a_refused_job_and_a_missing_qsub_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunDir(tmp_path / "run")
    files = make_files(run, Path("config.yaml"), "local", ["queue=a"], False, refine=False, scheduler="pbs")
    command(tmp_path / "bin", "qsub", "echo 'qsub: Unknown queue' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(UserError, match="qsub refused a job: qsub: Unknown queue"):
        submit_files(run, files, "pbs")
    (tmp_path / "bin" / "qsub").unlink()
    with pytest.raises(UserError, match="there is no qsub here"):
        submit_files(run, files, "pbs")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck():
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
