"""Submit a run: calibrate, then solve, refine, reround, then the rest, each job waiting for the one before.

RUN/slurm/ or RUN/pbs/ gets the batch scripts, the site's `env.sh` and `submit.sh`, which holds the commands that
submit. What is submitted can be read, changed and submitted again by hand.
"""

import importlib.metadata
import logging
import math
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcmpq.batch.scheduler import Job, Settings, scheduler_of
from hpcmpq.batch.typed import OPTIONAL_ARRAYS
from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.store.jobs_file import read_submissions
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import replacing

log = logging.getLogger(__name__)

CALIBRATE_SCRIPTS = {
    "mpi": "calibrate_mpi",
    "ray": "calibrate_ray",
    "array": "calibrate_array",
    "local": "calibrate_array",
}
"""How `hpcmpq submit --executor` calibrates; `array` is many local ones that share the run directory."""


def make_jobs(
    run: RunDir,
    executor: str,
    settings: Settings,
    *,
    refine: bool,
    reround: bool = False,
    sharded: bool = False,
    plan_from: Path | None = None,
) -> list[Job]:
    """The chain of jobs.

    Args:
        run: The run directory.
        executor: How calibration shares out its work units.
        settings: What the user asked for, for it.
        refine: Whether the run has held-out samples to refine on.
        reround: Whether the solution's weights are rounded again.
        sharded: Whether the model is evaluated over many ranks, which takes a job of its own.
        plan_from: The config, if planning is a job too.

    Raises:
        UserError: If there are settings for the last job of the other kind of chain.
    """
    path = str(run.path.resolve())
    calls = {
        "calibrate": (CALIBRATE_SCRIPTS[executor], path),
        "solve": ("solve", path, "reduce", "solve"),
        **{
            name: (
                CALIBRATE_SCRIPTS["array"] if "array" in settings.options[name] else "solve",
                path,
                name,
            )
            for name in OPTIONAL_ARRAYS
        },
    }
    if sharded:
        calls["export"] = ("solve", path, "export")
        calls["evaluate"] = ("evaluate", path)
        calls["report"] = ("solve", path, "report")
    else:
        calls["finish"] = ("solve", path, "export", "evaluate", "report")
    for name in sorted(settings.named & {"finish", "export", "evaluate", "report"} - set(calls)):
        engine = "deepspeed" if sharded else "torch"
        raise UserError(
            f"--{settings.scheduler} {name}.KEY: with evaluation.engine {engine} there is no job {name}; "
            f"jobs: {', '.join(calls)}"
        )
    if plan_from is not None:
        calls = {"plan": ("plan", str(plan_from.resolve()), path), **calls}
    for name, wanted in (("refine", refine), ("reround", reround)):
        if not wanted:
            del calls[name]
    suffix = scheduler_of(settings.scheduler).suffix
    return [
        Job(name, f"{script}.{suffix}", tuple(rest), settings.options[name])
        for name, (script, *rest) in calls.items()
    ]


def make_files(
    run: RunDir,
    config: Path,
    executor: str,
    texts: Sequence[str],
    plan_on_cluster: bool,
    *,
    refine: bool,
    reround: bool = False,
    sharded: bool = False,
    scheduler: str = "slurm",
    solve_bytes: int = 0,
) -> dict[str, str]:
    """{file name: text} of RUN/slurm/, or of another scheduler's folder, for what the user typed.

    Args:
        run: The run directory.
        config: Its config.
        executor: How calibration shares out its work units.
        texts: Settings as typed.
        plan_on_cluster: Whether planning is a job too.
        refine: Whether the run has held-out samples to refine on.
        reround: Whether the solution's weights are rounded again.
        sharded: Whether the model is evaluated over many ranks.
        scheduler: A key of `SCHEDULERS`.
        solve_bytes: Memory that the job `solve` is predicted to take; 0 where that is not known.

    Raises:
        UserError: If a setting is wrong, or the site's `env.sh` cannot be read.
    """
    system = scheduler_of(scheduler)
    settings = system.parse_settings(texts, executor)
    if (gib := memory_to_request(solve_bytes)) > LEAST_REQUESTED:
        options = {**settings.options, "solve": system.with_memory(settings.options["solve"], gib)}
        settings = replace(settings, options=options)
    plan_from = config if plan_on_cluster else None
    jobs = make_jobs(
        run, executor, settings, refine=refine, reround=reround, sharded=sharded, plan_from=plan_from
    )
    scripts = _scripts_directory()
    names = dict.fromkeys([*system.files, *(job.script for job in jobs)])
    site = settings.env or scripts / "slurm" / "env.sh"
    try:
        files = {"env.sh": site.read_text(encoding="utf-8", errors="surrogateescape")}
    except OSError as error:
        raise UserError(f"cannot read {site}: {error.strerror}; check its permissions") from None
    files |= {name: (scripts / system.folder / name).read_text(encoding="utf-8") for name in names}
    files["submit.sh"] = system.chain_script(run, jobs)
    return files


def memory_to_request(solve_bytes: int) -> int:
    """GiB to request for a process that is predicted to take so many bytes beyond its libraries, with room to spare.

    Example:
        >>> memory_to_request(0), memory_to_request(3 * 2**30)
        (1, 5)
    """
    return math.ceil(MEMORY_ROOM * (solve_bytes + LIBRARY_BYTES) / 2**30)


MEMORY_ROOM = 1.25
"""What is requested is what is predicted times this."""

LIBRARY_BYTES = 3e8
"""Of a process with the libraries of a solve."""

LEAST_REQUESTED = 1
"""GiB up to which nothing is requested: every site grants a job that much, and some know no sizes of memory."""


def submit_files(run: RunDir, files: Mapping[str, str], scheduler: str = "slurm") -> dict[str, str]:
    """Write RUN/slurm/ or another scheduler's folder, submit, and remember the numbers in RUN/jobs.json.

    Returns:
        {job name: the scheduler's id}.

    Raises:
        UserError: If the command that submits is not here, or refuses a job.
    """
    system, folder = scheduler_of(scheduler), run.path / scheduler
    for name, text in files.items():
        with replacing(folder / name) as attempt:
            attempt.write_text(text, encoding="utf-8", errors="surrogateescape")
    before = _submissions(run)  # first: what cannot be remembered must not be submitted
    command = ["bash", str(folder / "submit.sh")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    jobs = dict(line.split() for line in done.stdout.splitlines())
    if jobs:
        submission = {"submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "scheduler": scheduler, "jobs": jobs}
        write_artefact(run.jobs_path, {"submissions": [*before, submission]})
    if done.returncode == 127:
        raise UserError(
            f"there is no {system.command} here; run `hpcmpq submit` on a login node, or see it with --dry-run"
        )
    if done.returncode != 0:
        kept = ", ".join(f"{name} {number}" for name, number in jobs.items())
        after = (
            f"; already submitted: {kept}, end them with {system.cancel} {' '.join(jobs.values())}"
            if jobs
            else ""
        )
        raise UserError(f"{system.command} refused a job: {' '.join(done.stderr.split())}{after}")
    return jobs


def _submissions(run: RunDir) -> list[dict[str, Any]]:
    """Earlier submissions; none where jobs.json is missing or damaged."""
    try:
        return read_submissions(run)
    except DamagedFile:
        log.warning(
            "%s is damaged: earlier submissions are forgotten; the scheduler lists them", run.jobs_path
        )
        return []


def _scripts_directory() -> Path:
    """Where folders of batch scripts lie: beside the package in a source tree, else where its installer put them."""
    source = Path(__file__).resolve().parents[2]
    if (source / "slurm" / "env.sh").is_file():
        return source
    for file in importlib.metadata.files("hpcmpq") or ():
        if file.match("share/hpcmpq/slurm/env.sh"):
            return Path(str(file.locate())).resolve().parents[1]
    raise UserError(f"the batch scripts are not in {source}; install hpcmpq again")
