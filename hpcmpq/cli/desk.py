"""What people type before and after runs: is this machine ready, a first config, two runs side by side."""

import dataclasses
from pathlib import Path
from typing import Any

from hpcmpq import console, options, summaries
from hpcmpq.cli.app import command
from hpcmpq.cli.document import Reported
from hpcmpq.doctor import examine
from hpcmpq.store.run_dir import RunDir
from hpcmpq.wording import label


@command("hpcmpq doctor --directory runs")
def doctor(directory: options.RunsDirectory = Path(".")) -> list[dict[str, Any]]:
    """Look at Python, torch, MPI, Ray, Slurm, DeepSpeed and the file system; say what to fix.

    Exit status 0 if everything that every run needs is there, 2 otherwise.
    """
    checks = examine(directory)
    summaries.examined((check.state, check.name, check.found, check.fix) for check in checks)
    values = [dataclasses.asdict(check) for check in checks]
    if broken := [check.name for check in checks if check.broken]:
        raise Reported(f"every run needs {', '.join(broken)}; put that right first, as shown above", values)
    return values


@command("hpcmpq init models/my-model --data corpus.txt --output my-model.yaml")
def init(
    model_directory: options.ModelDirectory,
    output: options.NewConfig = Path("config.yaml"),
    data: options.DataFile = None,
) -> dict[str, Any]:
    """Look at a Hugging Face directory and write a commented config to start from."""
    from hpcmpq.starter import write_starter

    groups = write_starter(model_directory, output, data)
    console.say(
        f"{len(groups)} groups with {sum(group.numel for group in groups):,} weights; config in {output}"
    )
    if data is None:
        console.say("change calibration.data in it to your own")
    console.say(f"next: hpcmpq run {output} --run-dir runs/{model_directory.resolve().name}")
    num_weights = sum(group.numel for group in groups)
    return {"config": str(output), "num_groups": len(groups), "num_weights": num_weights}


@command("hpcmpq compare runs/three-bits runs/four-bits")
def compare(first: options.FirstRun, second: options.SecondRun) -> dict[str, Any]:
    """Show budgets, costs, predicted and measured losses and formats of two runs side by side."""
    from hpcmpq.compare import compare as compare_runs

    values = compare_runs(RunDir(first), RunDir(second))
    for note in values["notes"]:
        console.say(note)
    for title in ("settings", "budgets", "costs", "losses", "evaluation"):
        in_words = label if title == "losses" else str  # the others are what configs and --budget call them
        pairs = [(in_words(name), _cell(a), _cell(b)) for name, (a, b) in values[title].items()]
        if pairs:
            console.rows((title, str(first), str(second)), pairs)
    formats = [(group, *pair) for group, pair in values["formats"].items()]
    console.say(_differing(len(formats), values["num_shared_groups"]))
    if formats:
        console.rows(("group", str(first), str(second)), formats)
    return values


def _differing(count: int, num_shared: int) -> str:
    if not num_shared:
        return "no group is in both, so formats are not compared"
    return (
        f"{count} of {num_shared} groups in both differ in format"
        if count
        else "all groups in both have the same format"
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
