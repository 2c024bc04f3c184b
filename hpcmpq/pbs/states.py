"""Where jobs of PBS stand, by `qstat`, which also tells of jobs that ended where the site keeps their history."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hpcmpq.batch.scheduler import in_words
from hpcmpq.store.run_dir import RunDir

_WAITING, _RUNNING = "QHWTSU", "RBEM"
_TASKS = {"Queued": "PENDING", "Running": "RUNNING", "Exiting": "RUNNING", "Expired": "ended"}


def states(run: RunDir, numbers: Sequence[str]) -> dict[str, str]:
    """{job id: state} of those of the jobs that PBS knows, in Slurm's words; where one went on as another, of that."""
    followed = {number: _latest(run, number) for number in numbers}
    jobs = _ask(list(followed.values()))
    return {number: in_word(jobs[latest]) for number, latest in followed.items() if latest in jobs}


def in_word(job: Mapping[str, Any]) -> str:
    """The state of a job, from what `qstat -f -F json` says of it; of an array the states of its tasks, counted.

    Example:
        >>> in_word({"job_state": "F", "Exit_status": 0}), in_word({"job_state": "H", "depend": "afterok:7.pbs"})
        ('COMPLETED', 'PENDING (Dependency)')
        >>> in_word({"job_state": "B", "array_state_count": "Queued:1 Running:2 Exiting:0 Expired:0 "})
        '1 PENDING, 2 RUNNING'
    """
    state = str(job.get("job_state", ""))
    if state == "B" and "array_state_count" in job:
        counts: dict[str, int] = {}
        for each in str(job["array_state_count"]).split():
            name, _, count = each.partition(":")
            counts[_TASKS[name]] = counts.get(_TASKS[name], 0) + int(count)
        return in_words(counts)
    if state == "H" and "after" in str(job.get("depend", "")):
        return "PENDING (Dependency)"
    if state in ("F", "X"):
        if "Exit_status" not in job:
            return "CANCELLED"
        return "COMPLETED" if job["Exit_status"] == 0 else f"FAILED (exit status {job['Exit_status']})"
    words = {**dict.fromkeys(_WAITING, "PENDING"), **dict.fromkeys(_RUNNING, "RUNNING")}
    return words.get(state, state)


def _latest(run: RunDir, number: str) -> str:
    """The job that goes on with this one's work: `jobs/pbs/pbs.sh` notes where a job submits itself again."""
    with suppress(OSError):
        for line in (run.path / "pbs" / "again").read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" ")
            if before == number and after:
                number = after
    return number


def _ask(numbers: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """{job id: what PBS says of it}; empty if the command is missing or fails."""
    if shutil.which("qstat") is None:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    for number in numbers:  # of several, qstat forgets all where it has forgotten one
        with suppress(OSError, ValueError, AttributeError, subprocess.TimeoutExpired):
            shown = subprocess.run(
                ["qstat", "-x", "-f", "-F", "json", number],
                capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=False,
            ).stdout  # fmt: skip
            found |= json.loads(shown, strict=False).get("Jobs", {})
    return found
