"""Submit a run to Slurm: calibrate, then solve, then refine, then the rest, each waiting for the one before.

RUN/slurm/ gets the batch scripts, the site's `env.sh` and `submit.sh`, which holds the sbatch commands: what
is submitted can be read, changed and submitted again by hand.
"""

import difflib
import importlib.metadata
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmpq.errors import UserError
from hpcmpq.store import RunDir, read_json, replacing, write_json

CALIBRATE_SCRIPTS = {
    "mpi": "calibrate_mpi.sbatch",
    "ray": "calibrate_ray.sbatch",
    "array": "calibrate_array.sbatch",
    "local": "calibrate_array.sbatch",
}
"""How `hpcmpq submit --executor` calibrates; `array` is many local ones that share the run directory."""

JOBS = ("plan", "calibrate", "solve", "refine", "finish")

_ALL, _FIRST = JOBS, ("calibrate",)
KEYS: dict[str, tuple[str, ...]] = {
    "partition": _ALL,
    "account": _ALL,
    "qos": _ALL,
    "time": _ALL,
    "mem": _ALL,
    "constraint": _ALL,
    "exclude": _ALL,
    "reservation": _ALL,
    "signal": _ALL,
    "nodes": _FIRST,
    "ntasks": _FIRST,
    "ntasks_per_node": _FIRST,
    "cpus_per_task": _FIRST,
    "mem_per_cpu": _FIRST,
    "array": _FIRST,
    "gpus": _FIRST,
    "gpus_per_node": _FIRST,
    "gpus_per_task": _FIRST,
    "gres": _FIRST,
}
"""Slurm settings, and the jobs that they hold for when no job is named."""

_GPU_KEYS = ("gpus", "gpus_per_node", "gpus_per_task", "gres")
_GPU_JOBS = ("refine", "finish")


@dataclass(frozen=True)
class Job:
    """One call of sbatch.

    Attributes:
        name: One of `JOBS`.
        script: File name of its batch script.
        arguments: Of the script.
        options: Of sbatch, by long name with underscores.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    options: Mapping[str, str]


@dataclass(frozen=True)
class Settings:
    """What `--slurm` said.

    Attributes:
        options: {job: {sbatch option: value}}.
        env: The site's own `env.sh`, or None for the one that comes with the package.
    """

    options: Mapping[str, Mapping[str, str]]
    env: Path | None


def parse_settings(texts: Sequence[str], executor: str) -> Settings:
    """Settings from KEY=VALUE and JOB.KEY=VALUE texts, several to a text where blanks separate them.

    Raises:
        UserError: If a key or job is unknown, listing all there are, or a value is missing.
    """
    if executor not in CALIBRATE_SCRIPTS:
        raise UserError(f"unknown executor {executor!r}; known: {', '.join(CALIBRATE_SCRIPTS)}")
    general: dict[str, str] = {}
    special: dict[tuple[str, str], str] = {}
    env = None
    for text in shlex.split(" ".join(texts)):
        name, equals, value = text.partition("=")
        key = name.replace("-", "_")
        job, dot, job_key = key.rpartition(".")
        if not equals or not value:
            raise UserError(f"--slurm {text!r} is not KEY=VALUE; {_valid_keys()}")
        if key == "env":
            env = Path(value)
        elif job_key not in KEYS or (dot and job not in JOBS):
            near = difflib.get_close_matches(job_key, KEYS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}? " if near and near[0] != job_key else ""
            raise UserError(f"unknown Slurm setting {name!r}; {hint}{_valid_keys()}")
        elif dot:
            special[job, job_key] = value
        else:
            general[key] = value
    if env is not None and not env.is_file():
        raise UserError(f"--slurm env={env}: no such file; copy slurm/env.sh and edit the copy")
    if executor != "array" and ("array" in general or ("calibrate", "array") in special):
        raise UserError(f"--slurm array needs --executor array, not {executor}")
    return Settings({job: _options_of(job, general, special, executor) for job in JOBS}, env)


def _valid_keys() -> str:
    return f"valid: env, {', '.join(KEYS)}, each but env also for one job as {'|'.join(JOBS)}.KEY"


def _options_of(
    job: str, general: Mapping[str, str], special: Mapping[tuple[str, str], str], executor: str
) -> dict[str, str]:
    options = {key: value for key, value in general.items() if job in KEYS[key]}
    own = {key: value for (name, key), value in special.items() if name == job}
    if job in _GPU_JOBS and set(general) & set(_GPU_KEYS) and not set(own) & set(_GPU_KEYS):
        options["gpus"] = "1"
    options.update(own)
    if job == "calibrate" and executor == "array":
        count, percent, at_once = options.get("array", "4").partition("%")
        if count.isdigit() and int(count) > 0:
            options["array"] = f"0-{int(count) - 1}{percent}{at_once}"
    return options


def make_jobs(
    run: RunDir, executor: str, settings: Settings, *, refine: bool, plan_from: Path | None = None
) -> list[Job]:
    """The chain of jobs.

    Args:
        run: The run directory.
        executor: A key of `CALIBRATE_SCRIPTS`.
        settings: What the user asked for.
        refine: Whether the run has held-out samples to refine on.
        plan_from: The config, if planning is a job too.
    """
    path = str(run.path.resolve())
    calls = {
        "calibrate": (CALIBRATE_SCRIPTS[executor], path),
        "solve": ("solve.sbatch", path, "reduce", "solve"),
        "refine": ("solve.sbatch", path, "refine"),
        "finish": ("solve.sbatch", path, "export", "evaluate", "report"),
    }
    if plan_from is not None:
        calls = {"plan": ("plan.sbatch", str(plan_from.resolve()), path), **calls}
    if not refine:
        del calls["refine"]
    return [Job(name, script, tuple(rest), settings.options[name]) for name, (script, *rest) in calls.items()]


def make_files(
    run: RunDir, config: Path, executor: str, texts: Sequence[str], plan_on_cluster: bool, *, refine: bool
) -> dict[str, str]:
    """{file name: text} of RUN/slurm/, for what the user typed.

    Raises:
        UserError: If a setting is wrong.
    """
    settings = parse_settings(texts, executor)
    plan_from = config if plan_on_cluster else None
    jobs = make_jobs(run, executor, settings, refine=refine, plan_from=plan_from)
    scripts = _scripts_directory()
    names = dict.fromkeys(job.script for job in jobs)
    files = {"env.sh": (settings.env or scripts / "env.sh").read_text()}
    files |= {name: (scripts / name).read_text() for name in names}
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
            attempt.write_text(text)
    command = ["bash", str(run.path / "slurm" / "submit.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    jobs = dict(line.split() for line in done.stdout.splitlines())
    if jobs:
        before = read_json(run.jobs_path, "hpcmpq submit")["submissions"] if run.jobs_path.exists() else []
        submission = {"submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "jobs": jobs}
        write_json(run.jobs_path, {"submissions": [*before, submission]})
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


def _scripts_directory() -> Path:
    """Where the batch scripts lie: beside the package in a source tree, else where its installer put them."""
    source = Path(__file__).resolve().parents[1] / "slurm"
    if (source / "env.sh").is_file():
        return source
    for file in importlib.metadata.files("hpcmpq") or ():
        if file.match("share/hpcmpq/slurm/env.sh"):
            return Path(str(file.locate())).resolve().parent
    raise UserError(f"the batch scripts are not in {source}; install hpcmpq again")
