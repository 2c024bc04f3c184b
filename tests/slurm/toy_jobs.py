"""Submitting runs of the slow toy and waiting for what Slurm makes of them."""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcmpq.cli import app
from hpcmpq.plan import Plan
from hpcmpq.store.attempts import read_processes
from hpcmpq.store.json_files import read_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import pending
from tests.slurm.slow_toy import CONFIG, FORWARDS_PER_UNIT

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ToyRun:
    """A run directory of the toy and the environment that its commands run in."""

    run: RunDir
    config: Path
    environment: Mapping[str, str]

    def hpcmpq(self, *arguments: object) -> str:
        """Standard output of a command that must succeed, run in this process to spare a start."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            result = CliRunner().invoke(app, list(map(str, arguments)), env=self.environment)
        assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
        return result.stdout

    def submit(self, executor: str, *settings: str) -> str:
        """Submit the chain; the number of its first job."""
        words = [word for setting in settings for word in ("--slurm", setting)]
        shown = self.hpcmpq("submit", self.config, "--run-dir", self.run.path, "--executor", executor, *words)
        return jobs_in(shown)["calibrate"]

    def cancel(self) -> None:
        """End what is left of the chain."""
        if self.run.jobs_path.exists():
            submissions = read_json(self.run.jobs_path, "")["submissions"]
            output(
                ["scancel", *(n for entry in submissions for n in entry["jobs"].values())], self.environment
            )

    def plan(self) -> Plan:
        return read_plan(self.run)

    def num_done(self) -> int:
        return len(list(self.run.shards_path.glob("*.h5")))

    def num_missing(self) -> int:
        return len(pending(self.plan(), self.run)[0])

    def num_starts(self) -> int:
        """Calibrate processes that got as far as opening their record."""
        return len(read_processes(self.run))

    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted((self.run.path / "slurm").glob("*.log")))

    def scontrol(self, *arguments: str) -> str:
        return output(["scontrol", *arguments], self.environment)

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        words = self.scontrol("show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)[name]

    def wait_for(self, met: Callable[[], bool], timeout_s: float = 200) -> None:
        """Wait until something is so; show the logs if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not met():
            queue = (
                output(["squeue", "--states=all"], self.environment) if time.monotonic() > deadline else ""
            )
            assert time.monotonic() < deadline, f"{queue}\n{self.log()}"
            time.sleep(0.3)

    def wait_for_job(self, job: str, *states: str, timeout_s: float = 200) -> None:
        self.wait_for(lambda: self.field(job, "JobState") in states, timeout_s)

    def start_again(self, job: str) -> None:
        """Spare a requeued job most of the two minutes that Slurm lets it wait.

        Nodes refuse a start in the second in which they ended the job's last one, and a refused job fails.
        """
        self.scontrol("update", f"JobId={job}", "StartTime=now+3")


def toy_run(path: Path, environment: Mapping[str, str], unit_s: float = 0.0) -> ToyRun:
    """A toy's run directory, not planned yet, whose units take `unit_s` seconds each in jobs."""
    path.mkdir(parents=True)
    config = path / "config.yaml"
    config.write_text(CONFIG)
    seconds = {"HPCMPQ_TOY_SECONDS": str(unit_s / FORWARDS_PER_UNIT)}
    return ToyRun(RunDir(path / "run"), config, {**environment, **seconds})


def jobs_in(shown: str) -> dict[str, str]:
    """{job: number} that `hpcmpq submit` printed."""
    lines = [line.split() for line in shown.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) == 2 and words[1].isdigit()}


def output(command: list[str], environment: Mapping[str, str]) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
