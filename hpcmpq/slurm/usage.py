"""What the jobs of a run used, from Slurm's accounting, and what to request the next time; files of the run.

Written to RUN/usage.json, so that the report shows it on a machine without Slurm too.
"""

import dataclasses
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hpcmpq.batch.submit import MEMORY_ROOM
from hpcmpq.errors import UserError
from hpcmpq.store.jobs_file import read_submissions
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.run_dir import RunDir

FIELDS = (
    "JobID", "State", "ElapsedRaw", "TotalCPU", "CPUTimeRAW", "NNodes", "NTasks", "MaxRSS", "ReqMem", "AllocCPUS",
    "AllocTRES", "ConsumedEnergyRaw", "Submit", "Start",
)  # fmt: skip

TIME_ROOM = 1.5
"""What to request is what was used times this; of memory it is `MEMORY_ROOM`."""

GIB = 2**30


@dataclass(frozen=True)
class JobUsage:
    """What one job of a chain used, over all its starts and array tasks.

    Attributes:
        job: Of `hpcmpq.slurm.settings.JOBS`.
        number: Slurm's.
        starts: Times that it or a task of it began; those beyond the tasks are requeues.
        elapsed_s: Wall time of all starts.
        longest_s: Wall time of the longest start.
        queued_s: From submission to the first start, or None before.
        cpu_s: CPU time used.
        allocated_cpu_s: CPU time that was reserved.
        peak_bytes: At most so much resident memory on a node at once, or None where it is not accounted.
        requested_bytes: Memory requested on a node, or None.
        gpu_hours: GPUs reserved times hours.
        energy_j: Energy, or None where it is not recorded.
    """

    job: str
    number: str
    starts: int
    elapsed_s: float
    longest_s: float
    queued_s: float | None
    cpu_s: float
    allocated_cpu_s: float
    peak_bytes: float | None
    requested_bytes: float | None
    gpu_hours: float
    energy_j: float | None

    @property
    def advice(self) -> str:
        """Options of sbatch to ask for the next time; empty before it ran."""
        if not self.longest_s:
            return ""
        minutes = 10 * math.ceil(TIME_ROOM * self.longest_s / 600)
        parts = [f"time={minutes // 60:02d}:{minutes % 60:02d}:00"]
        if self.peak_bytes:
            parts.append(f"mem={math.ceil(MEMORY_ROOM * self.peak_bytes / GIB)}G")
        return " ".join(parts)


@dataclass(frozen=True)
class Usage:
    """What a run used.

    Attributes:
        jobs: Of the latest submission, in order.
        num_files: Files below the run directory.
        num_directories: Directories; with the files, its inodes.
        bytes: Of those files.
    """

    jobs: tuple[JobUsage, ...]
    num_files: int
    num_directories: int
    bytes: int


def read_usage(run: RunDir) -> Usage:
    """Ask sacct about the latest submission, count files, and write RUN/usage.json.

    Raises:
        UserError: If the run was never submitted, or Slurm's accounting does not answer.
    """
    submissions = read_submissions(run)
    if not submissions:
        raise UserError(f"no jobs of {run.path} were submitted; `hpcmpq submit` does that")
    jobs: dict[str, str] = submissions[-1]["jobs"]
    lines = _ask(list(jobs.values()))
    usage = Usage(tuple(job_usage(name, number, lines) for name, number in jobs.items()), *count_files(run))
    write_artefact(run.file("usage.json"), as_values(usage))
    return usage


def _ask(numbers: Iterable[str]) -> list[dict[str, str]]:
    if shutil.which("sacct") is None:
        raise UserError("there is no sacct here; run `hpcmpq status --usage` on a login node of the cluster")
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", "--jobs", ",".join(numbers)]
    try:
        done = subprocess.run(
            [*command, f"--format={','.join(FIELDS)}"],
            capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError("sacct did not answer within 60 s; try again later") from None
    lines = [dict(zip(FIELDS, line.split("|"), strict=False)) for line in done.stdout.splitlines()]
    if done.returncode != 0 or not lines:
        said = " ".join(done.stderr.split()) or "it knows none of these jobs"
        raise UserError(f"Slurm's accounting has nothing on jobs {', '.join(numbers)}: {said}")
    return lines


def job_usage(job: str, number: str, lines: Iterable[Mapping[str, str]]) -> JobUsage:
    """The usage of one job, from sacct's lines of allocations (`7`, `7_1`) and steps (`7.batch`, `7.0`)."""
    own = [line for line in lines if re.split(r"[._]", line["JobID"])[0] == number]
    starts = [line for line in own if "." not in line["JobID"] and seconds_of(line["Start"]) is not None]
    steps = [line for line in own if "." in line["JobID"]]
    elapsed = [float(line["ElapsedRaw"] or 0) for line in starts]
    peaks = [peak for step in steps if (peak := _on_a_node(step)) is not None]
    requested = [asked for line in starts if (asked := _requested(line)) is not None]
    waits = [
        began - asked
        for line in starts
        if (asked := seconds_of(line["Submit"])) is not None
        and (began := seconds_of(line["Start"])) is not None
    ]
    energy = [
        float(line["ConsumedEnergyRaw"]) for line in starts if line.get("ConsumedEnergyRaw", "").isdecimal()
    ]
    return JobUsage(
        job=job,
        number=number,
        starts=len(starts),
        elapsed_s=sum(elapsed),
        longest_s=max(elapsed, default=0.0),
        queued_s=min(waits, default=None),
        cpu_s=sum(cpu_seconds(line["TotalCPU"]) for line in starts),
        allocated_cpu_s=sum(float(line["CPUTimeRAW"] or 0) for line in starts),
        peak_bytes=max(peaks, default=None),
        requested_bytes=max(requested, default=None),
        gpu_hours=sum(_gpus(line["AllocTRES"]) * s / 3600 for line, s in zip(starts, elapsed, strict=True)),
        energy_j=sum(energy) if any(energy) else None,
    )


def cpu_seconds(text: str) -> float:
    """Slurm's [days-][[hours:]minutes:]seconds.

    Example:
        >>> cpu_seconds("1-02:03:04"), cpu_seconds("01:30.500"), cpu_seconds("")
        (93784.0, 90.5, 0.0)
    """
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = 60 * total + float(part or 0)
    return total + 86400 * float(days or 0)


def in_bytes(text: str) -> float | None:
    """Slurm's sizes; None where there is none.

    Example:
        >>> in_bytes("1536K"), in_bytes("4G"), in_bytes("4000Mn"), in_bytes("")
        (1572864.0, 4294967296.0, 4194304000.0, None)
    """
    found = re.fullmatch(r"([\d.]+)([KMGTP]?)[nc?]?", text)
    return float(found[1]) * 1024.0 ** " KMGTP".index(found[2] or " ") if found and float(found[1]) else None


def seconds_of(text: str) -> float | None:
    """Unix time of what sacct calls a time; None for one that has not come."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def count_files(run: RunDir) -> tuple[int, int, int]:
    """(files, directories, bytes) of a run directory, itself included."""
    num_files = num_directories = num_bytes = 0
    for place, _, names in os.walk(run.path):
        num_directories += 1
        num_files += len(names)
        for name in names:
            try:
                num_bytes += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue  # removed meanwhile
    return num_files, num_directories, num_bytes


def _on_a_node(step: Mapping[str, str]) -> float | None:
    """The largest task's peak for each of the tasks of a node."""
    peak = in_bytes(step["MaxRSS"])
    tasks, nodes = int(step["NTasks"] or 1), int(step["NNodes"] or 1)
    return None if peak is None else peak * math.ceil(tasks / max(nodes, 1))


def _requested(line: Mapping[str, str]) -> float | None:
    """Memory on a node; Slurms before 21.08 mark whether it was asked for each CPU."""
    size = in_bytes(line["ReqMem"])
    if size is None:
        return None
    nodes, cpus = max(int(line["NNodes"] or 1), 1), int(line["AllocCPUS"] or 1)
    if line["ReqMem"].endswith("c"):
        return size * math.ceil(cpus / nodes)
    return size if line["ReqMem"].endswith("n") else size / nodes


def _gpus(tres: str) -> int:
    found = re.search(r"gres/gpu=(\d+)", tres)
    return int(found[1]) if found else 0


def as_values(usage: Usage) -> dict[str, Any]:
    """What --json prints: the content of RUN/usage.json."""
    return {
        **dataclasses.asdict(usage),
        "jobs": [{**dataclasses.asdict(job), "advice": job.advice} for job in usage.jobs],
    }
