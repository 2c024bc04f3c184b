"""The qsub commands of a chain of jobs."""

import re
import shlex
import sys
from collections.abc import Sequence

from hpcmpq.batch.scheduler import Job
from hpcmpq.store.run_dir import RunDir

_OPTIONS = {
    "queue": "-q {}",
    "account": "-A {}",
    "project": "-P {}",
    "walltime": "-l walltime={}",
    "place": "-l place={}",
    "select": "-l select={}",
    "array": "-J {}",
}
"""How qsub spells a setting."""


def chain_script(run: RunDir, jobs: Sequence[Job]) -> str:
    """The shell script that submits the jobs and prints a line `NAME ID` for each.

    With the name of a job it submits that one alone, waiting for none: how a job whose time is over goes on.
    """
    place = run.path.resolve() / "pbs"
    lines = [
        "#!/usr/bin/env bash",
        "# Submits the jobs of one run, each waiting for the one before; prints their names and numbers.",
        "# With the name of a job: that one again.",
        "set -euo pipefail",
        f"export HPCMPQ_ENV={shlex.quote(str(place / 'env.sh'))}",
        f"export HPCMPQ_SUBMIT_PYTHON={shlex.quote(sys.executable)}",
        "export HPCMPQ_STARTS=${HPCMPQ_STARTS:-1} HPCMPQ_TASKS=1",
        "# The jobs get what is set now; in a job that submits itself again, what was set then.",
        'export HPCMPQ_PASSED=${HPCMPQ_PASSED:-$(IFS=,; echo "${!HPCMPQ_*}")}',
        '. "$HPCMPQ_ENV"',
        "only=${1:-} before=()",
        "submit() {",
        "    local id",
        '    if [ -n "$only" ] && [ "$only" != "$1" ]; then return; fi',
        '    id=$(qsub -N "hpcmpq-$1" -j oe -r y -v "$HPCMPQ_PASSED,HPCMPQ_PASSED" \\',
        '        ${before[@]+"${before[@]}"} "${@:2}")',
        '    before=(-W "depend=afterok:$id")',
        '    echo "$1 $id"',
        "}",
    ]
    for job in jobs:
        words = [f"-o {shlex.quote(str(place))}/"]
        words += [_OPTIONS[key].format(shlex.quote(value)) for key, value in sorted(job.options.items())]
        words += ["-- /bin/bash " + shlex.quote(str(place / job.script))]
        words += map(shlex.quote, job.arguments)
        last = re.search(r"-(\d+)", job.options.get("array", ""))
        tasks = f"HPCMPQ_TASKS={int(last[1]) + 1} " if last else ""
        lines.append(" \\\n    ".join([f"{tasks}submit {job.name}", *words]))
    return "\n".join(lines) + "\n"
