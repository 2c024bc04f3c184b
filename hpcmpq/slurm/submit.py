"""Submit a run to Slurm: calibrate, then solve, refine, reround, then the rest, each waiting for the one before.

RUN/slurm/ gets the batch scripts, the site's `env.sh` and `submit.sh`, which holds the sbatch commands: what
is submitted can be read, changed and submitted again by hand.
"""

import importlib.metadata
import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmpq.errors import DamagedFile, UserError
from hpcmpq.slurm.settings import CALIBRATE_SCRIPTS, Settings, parse_settings
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One call of sbatch.

    Attributes:
        name: One of `hpcmpq.slurm.settings.JOBS`.
        script: File name of its batch script.
        arguments: Of the script.
        options: Of sbatch, by long name with underscores.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]


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
        executor: A key of `CALIBRATE_SCRIPTS`.
        settings: What the user asked for.
        refine: Whether the run has held-out samples to refine on.
        reround: Whether the solution's weights are rounded again.
        sharded: Whether the model is evaluated over many ranks, which takes a job of its own.
        plan_from: The config, if planning is a job too.

    Raises:
        UserError: If there are settings for the last job of the other kind of chain.
    """
    path = str(run.path.resolve())
    refining = CALIBRATE_SCRIPTS["array"] if "array" in settings.options["refine"] else "solve.sbatch"
    calls = {
        "calibrate": (CALIBRATE_SCRIPTS[executor], path),
        "solve": ("solve.sbatch", path, "reduce", "solve"),
        "refine": (refining, path, "refine"),
        "reround": ("solve.sbatch", path, "reround"),
    }
    if sharded:
        calls["export"] = ("solve.sbatch", path, "export")
        calls["evaluate"] = ("evaluate.sbatch", path)
        calls["report"] = ("solve.sbatch", path, "report")
    else:
        calls["finish"] = ("solve.sbatch", path, "export", "evaluate", "report")
    for name in sorted(settings.named & {"finish", "export", "evaluate", "report"} - set(calls)):
        engine = "deepspeed" if sharded else "torch"
        raise UserError(
            f"--slurm {name}.KEY: with evaluation.engine {engine} there is no job {name}; jobs: {', '.join(calls)}"
        )
    if plan_from is not None:
        calls = {"plan": ("plan.sbatch", str(plan_from.resolve()), path), **calls}
    for name, wanted in (("refine", refine), ("reround", reround)):
        if not wanted:
            del calls[name]
    return [Job(name, script, tuple(rest), settings.options[name]) for name, (script, *rest) in calls.items()]


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
) -> dict[str, str]:
    """{file name: text} of RUN/slurm/, for what the user typed.

    Raises:
        UserError: If a setting is wrong.
    """
    settings = parse_settings(texts, executor)
    plan_from = config if plan_on_cluster else None
    jobs = make_jobs(
        run, executor, settings, refine=refine, reround=reround, sharded=sharded, plan_from=plan_from
    )
    scripts = _scripts_directory()
    names = dict.fromkeys(job.script for job in jobs)
    files = {"env.sh": (settings.env or scripts / "env.sh").read_text(encoding="utf-8")}
    files |= {name: (scripts / name).read_text(encoding="utf-8") for name in names}
    files["submit.sh"] = chain_script(run, jobs)
    return files


def chain_script(run: RunDir, jobs: Sequence[Job]) -> str:
    """The shell script that submits the jobs and prints a line `NAME ID` for each."""
    place = run.path.resolve() / "slurm"
    lines = [
        "#!/usr/bin/env bash",
        "# Submits the jobs of one run, each waiting for the one before; prints their names and numbers.",
        "set -euo pipefail",
        f"export HPCMPQ_ENV={shlex.quote(str(place / 'env.sh'))}",
        f"export HPCMPQ_SUBMIT_PYTHON={shlex.quote(sys.executable)}",
        '. "$HPCMPQ_ENV"',
        "before=()",
        "submit() {",
        "    local id",
        '    id=$(sbatch --parsable --job-name="hpcmpq-$1" ${before[@]+"${before[@]}"} "${@:2}")',
        '    before=("--dependency=afterok:${id%%;*}" --kill-on-invalid-dep=yes)',
        '    echo "$1 ${id%%;*}"',
        "}",
    ]
    for job in jobs:
        log = "%x-%A_%a.log" if "array" in job.options else "%x-%j.log"
        words = [f"--output={place / log}"]
        words += [f"--{key.replace('_', '-')}={value}" for key, value in job.options.items()]
        words += [str(place / job.script), *job.arguments]
        lines.append(" \\\n    ".join([f"submit {job.name}", *map(shlex.quote, words)]))
    return "\n".join(lines) + "\n"


def submit_files(run: RunDir, files: Mapping[str, str]) -> dict[str, str]:
    """Write RUN/slurm/, submit, and remember the numbers in RUN/jobs.json.

    Returns:
        {job name: Slurm job id}.

    Raises:
        UserError: If there is no sbatch here, or it refuses a job.
    """
    for name, text in files.items():
        with replacing(run.path / "slurm" / name) as attempt:
            attempt.write_text(text, encoding="utf-8", errors="surrogateescape")
    before = _submissions(run)  # first: what cannot be remembered must not be submitted
    command = ["bash", str(run.path / "slurm" / "submit.sh")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    jobs = dict(line.split() for line in done.stdout.splitlines())
    if jobs:
        submission = {"submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "jobs": jobs}
        write_artefact(run.jobs_path, {"submissions": [*before, submission]})
    if done.returncode == 127:
        raise UserError(
            "there is no sbatch here; run `hpcmpq submit` on a login node, or see it with --dry-run"
        )
    if done.returncode != 0:
        kept = ", ".join(f"{name} {number}" for name, number in jobs.items())
        after = (
            f"; already submitted: {kept}, end them with scancel {' '.join(jobs.values())}" if jobs else ""
        )
        raise UserError(f"sbatch refused a job: {' '.join(done.stderr.split())}{after}")
    return jobs


def _submissions(run: RunDir) -> list[dict[str, Any]]:
    """Earlier submissions; none where jobs.json is missing or damaged."""
    try:
        return (
            list(read_json(run.jobs_path, "hpcmpq submit")["submissions"]) if run.jobs_path.exists() else []
        )
    except (DamagedFile, KeyError, TypeError):
        log.warning("%s is damaged: earlier submissions are forgotten; squeue --me lists them", run.jobs_path)
        return []


def _scripts_directory() -> Path:
    """Where the batch scripts lie: beside the package in a source tree, else where its installer put them."""
    source = Path(__file__).resolve().parents[2] / "slurm"
    if (source / "env.sh").is_file():
        return source
    for file in importlib.metadata.files("hpcmpq") or ():
        if file.match("share/hpcmpq/slurm/env.sh"):
            return Path(str(file.locate())).resolve().parent
    raise UserError(f"the batch scripts are not in {source}; install hpcmpq again")
