"""`hpcmpq compare`: two runs side by side."""

from typing import Any

from hpcmpq.cli import arguments, console
from hpcmpq.cli.app import command
from hpcmpq.store.run_dir import RunDir
from hpcmpq.wording import label


@command("hpcmpq compare runs/three-bits runs/four-bits")
def compare(first: arguments.FirstRun, second: arguments.SecondRun) -> dict[str, Any]:
    """Show budgets, costs, predicted and measured losses and formats of two runs side by side."""
    from hpcmpq.report.compare import compare as compare_runs

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
