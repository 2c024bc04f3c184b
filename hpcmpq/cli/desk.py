"""What people type before and after runs: is this machine ready, a first config, two runs side by side."""

import dataclasses
import json
from pathlib import Path

import typer

from hpcmpq import console, options
from hpcmpq.cli.app import app
from hpcmpq.doctor import examine
from hpcmpq.errors import UserError


@app.command(epilog="Example: hpcmpq doctor --directory runs")
def doctor(directory: options.RunsDirectory = Path("."), as_json: options.AsJson = False) -> None:
    """Look at Python, torch, MPI, Ray, Slurm, DeepSpeed and the file system; say what to fix.

    Exit status 0 if everything that every run needs is there, 2 otherwise.
    """
    checks = examine(directory)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        console.examined((check.state, check.name, check.found, check.fix) for check in checks)
    if broken := [check.name for check in checks if check.broken]:
        raise UserError(f"every run needs {', '.join(broken)}; put that right first, as shown above")
