"""`hpcmpq doctor`: is this machine ready."""

import dataclasses
from pathlib import Path
from typing import Any

from hpcmpq.cli import arguments, summaries
from hpcmpq.cli.app import command
from hpcmpq.cli.json_output import Reported
from hpcmpq.doctor import examine


@command("hpcmpq doctor --directory runs")
def doctor(directory: arguments.RunsDirectory = Path(".")) -> list[dict[str, Any]]:
    """Look at Python, torch, MPI, Ray, Slurm, DeepSpeed and the file system; say what to fix.

    Exit status 0 if everything that every run needs is there, 2 otherwise.
    """
    checks = examine(directory)
    summaries.examined((check.state, check.name, check.found, check.fix) for check in checks)
    values = [dataclasses.asdict(check) for check in checks]
    if broken := [check.name for check in checks if check.broken]:
        raise Reported(f"every run needs {', '.join(broken)}; put that right first, as shown above", values)
    return values
