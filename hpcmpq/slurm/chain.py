"""The sbatch commands of a chain of jobs."""

import shlex
import sys
from collections.abc import Sequence

from hpcmpq.batch.scheduler import Job
from hpcmpq.store.run_dir import RunDir


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
