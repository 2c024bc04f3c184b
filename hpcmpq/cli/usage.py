"""What the jobs of a run used, as a table."""

from rich.table import Table
from rich.text import Text

from hpcmpq.cli.console import table
from hpcmpq.cli.summaries import duration
from hpcmpq.slurm.usage import JobUsage, Usage
from hpcmpq.wording import show_bytes

COLUMNS = (
    "job",
    "starts",
    "queued",
    "elapsed",
    "CPU used",
    "memory on a node",
    "GPU hours",
    "energy",
    "next time",
)


def usage_parts(usage: Usage) -> list[Table | Text]:
    """A row for each job, and a line on the run's files."""
    rows = [_row(job) for job in usage.jobs]
    files = Text(
        f"{usage.num_files:,} files in {usage.num_directories:,} directories, {show_bytes(usage.bytes)}: "
        f"{usage.num_files + usage.num_directories:,} inodes of a quota"
    )
    return [table(COLUMNS, rows), files]


def _row(job: JobUsage) -> tuple[str, ...]:
    if not job.starts:
        return (job.job, "0", *[""] * (len(COLUMNS) - 2))
    share = f"{100 * job.cpu_s / job.allocated_cpu_s:.0f} %" if job.allocated_cpu_s else ""
    peak = "not recorded" if job.peak_bytes is None else f"{show_bytes(job.peak_bytes)}"
    asked = "" if job.requested_bytes is None else f" of {show_bytes(job.requested_bytes)}"
    return (
        job.job,
        str(job.starts),
        "" if job.queued_s is None else duration(job.queued_s),
        duration(job.elapsed_s),
        share,
        peak + asked,
        f"{job.gpu_hours:.2f}" if job.gpu_hours else "",
        "" if job.energy_j is None else f"{job.energy_j / 3.6e6:.3g} kWh",
        job.advice,
    )
