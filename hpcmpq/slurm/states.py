"""Where jobs of Slurm stand, by squeue, and by sacct about what that has forgotten."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence

from hpcmpq.batch.scheduler import in_words
from hpcmpq.store.run_dir import RunDir


def states(run: RunDir, numbers: Sequence[str]) -> dict[str, str]:
    """{job id: state} of those of the jobs that Slurm knows, the tasks of an array counted by state."""
    found = _ask(["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%F|%T|%r"])
    if set(numbers) - set(found):
        ids = ",".join(numbers)
        old = _ask(["sacct", "--noheader", "--parsable2", "-X", f"--jobs={ids}", "--format=JobID,State"])
        found = {**old, **found}
    return found


def _ask(command: list[str]) -> dict[str, str]:
    """{job id: state}; empty if the command is missing or fails."""
    if shutil.which(command[0]) is None:
        return {}
    try:
        shown = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        return {}
    tasks: dict[str, Counter[str]] = {}
    for line in shown.splitlines():
        number, state, *reason = line.split("|")
        words = f"{state} ({reason[0]})" if state == "PENDING" and reason else state
        tasks.setdefault(number.split("_")[0], Counter())[words] += 1
    return {number: in_words(counts) for number, counts in tasks.items()}
