"""What people type before and after runs: is this machine ready, a first config, two runs side by side."""

import dataclasses
import json
from pathlib import Path

import typer
from rich.markup import escape

from hpcmpq import console, options
from hpcmpq.cli.app import app
from hpcmpq.doctor import examine
from hpcmpq.errors import UserError
from hpcmpq.store import RunDir


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


@app.command(epilog="Example: hpcmpq init models/my-model --data corpus.txt --output my-model.yaml")
def init(
    model_directory: options.ModelDirectory,
    output: options.NewConfig = Path("config.yaml"),
    data: options.DataFile = None,
) -> None:
    """Look at a Hugging Face directory and write a commented config to start from."""
    from hpcmpq.starter import write_starter

    groups = write_starter(model_directory, output, data)
    console.say(
        f"{len(groups)} groups with {sum(group.numel for group in groups):,} weights; config in {output}"
    )
    if data is None:
        console.say("change calibration.data in it to your own")
    console.say(f"next: hpcmpq run {output} --run-dir runs/{model_directory.resolve().name}")


@app.command(epilog="Example: hpcmpq compare runs/three-bits runs/four-bits")
def compare(first: options.FirstRun, second: options.SecondRun, as_json: options.AsJson = False) -> None:
    """Show budgets, costs, predicted and measured losses and formats of two runs side by side."""
    from hpcmpq.compare import compare as compare_runs

    values = compare_runs(RunDir(first), RunDir(second))
    if as_json:
        typer.echo(json.dumps(values, indent=2))
        return
    for note in values["notes"]:
        console.say(escape(note))
    for title in ("settings", "budgets", "costs", "losses", "evaluation"):
        pairs = [(name, _cell(a), _cell(b)) for name, (a, b) in values[title].items()]
        console.rows((title, str(first), str(second)), pairs)
    formats = [(group, *pair) for group, pair in values["formats"].items()]
    console.say(f"{len(formats)} of {values['num_shared_groups']} groups in both differ in format")
    if formats:
        console.rows(("group", str(first), str(second)), formats)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
