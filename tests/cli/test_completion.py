"""What a Tab offers, asked the way that shells ask."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmpq.cli import completion
from hpcmpq.export import EXPORTERS
from hpcmpq.plan import plan_to_json
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from tests.synthetic_run import synthetic_plan

pytestmark = pytest.mark.slow

HPCMPQ = Path(sys.executable).with_name("hpcmpq")
INSTALLED = pytest.mark.skipif(not HPCMPQ.exists(), reason="the command hpcmpq is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs, a config and a model."""
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        write_json(RunDir(Path("runs") / name).plan_path, plan_to_json(synthetic_plan()))
    Path("runs/notes").mkdir()
    Path("configs").mkdir()
    Path("configs/mine.yaml").touch()
    Path("models/tiny").mkdir(parents=True)
    Path("models/tiny/config.json").touch()
    return tmp_path


def offered(*words: str) -> list[str]:
    """What bash gets for the last word."""
    environment = {"_HPCMPQ_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("hpcmpq", *words))}
    done = subprocess.run(
        [str(HPCMPQ)], env={**os.environ, **environment, "COMP_CWORD": str(len(words))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@INSTALLED
def test_commands_runs_and_names_are_offered(folder: Path):
    assert {"run", "solve", "frontier"} <= set(offered(""))
    assert offered("solve", "ru") == ["runs/first", "runs/second"]
    assert offered("export", "runs/first", "--format", "") == list(EXPORTERS)
    [name] = synthetic_plan().config.budgets
    limit = synthetic_plan().config.budgets[name]
    assert f"{name}={limit}" in offered("solve", "runs/first", "--budget", "")


@INSTALLED
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes_with_the_script_that_is_shown(folder: Path):
    code = (
        'source <("$0" --show-completion); COMP_WORDS=(hpcmpq compare runs/first runs/s); COMP_CWORD=3; '
        '_hpcmpq_completion "$0"; echo "${COMPREPLY[*]}"; complete -p hpcmpq'
    )
    done = subprocess.run(["bash", "-c", code, str(HPCMPQ)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "runs/second"
    assert "-F _hpcmpq_completion hpcmpq" in done.stdout


@INSTALLED
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_installing_writes_to_the_files_of_the_shell_that_asks(folder: Path):
    done = subprocess.run(
        ["bash", "-c", '"$0" --install-completion; exit $?', str(HPCMPQ)],
        env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bash completion installed" in done.stdout
    assert "_HPCMPQ_COMPLETE=complete_bash" in (folder / ".bash_completions" / "hpcmpq.sh").read_text()
    assert "hpcmpq.sh" in (folder / ".bashrc").read_text()


def test_paths_of_each_kind(folder: Path):
    assert completion.run_directories("runs/f") == ["runs/first"]
    assert completion.run_directories(f"{folder}/runs/s") == [f"{folder}/runs/second"]
    assert completion.configs("") == ["configs/mine.yaml"]
    assert completion.model_directories("mod") == ["models/tiny"]
    assert completion.run_directories("nowhere/") == []


def test_slurm_settings_of_all_jobs_and_of_one():
    assert completion.slurm_settings("part") == ["partition="]
    assert "evaluate.nodes=" in completion.slurm_settings("evaluate.")
    assert completion.slurm_settings("nobody.") == []


def test_every_offered_cost_and_engine_is_known():
    assert completion.ENGINES == ("torch", "deepspeed")
    assert {"weight_bits", "average_bits", "size_bytes", "bops", "macs", "latency_s"} <= set(completion.COSTS)
