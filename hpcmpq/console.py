"""What the command line prints: progress with time left, and the summary of each stage."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Table

from hpcmpq.executors import UnitOutcome
from hpcmpq.plan import Plan
from hpcmpq.reduce import Reduction
from hpcmpq.store import RunDir, read_json, read_plan

_out = Console(highlight=False)


def set_quiet(quiet: bool) -> None:
    """Print nothing but errors from now on."""
    _out.quiet = quiet


def say(text: str) -> None:
    """Print a line."""
    _out.print(text, soft_wrap=True)


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[UnitOutcome, int, int], None]]:
    """A bar with time left; yields the function that takes (outcome, done, total)."""
    with _bar(title, f"{unit}s") as bar:
        task = bar.add_task(title, total=None)

        def update(outcome: UnitOutcome, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if outcome.error:
                again = "" if outcome.final else "; trying again"
                bar.console.print(f"{unit} {outcome.unit}: {outcome.error}{again}", soft_wrap=True, markup=False)

        yield update


@contextmanager
def counter(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with time left; yields the function that takes (done, total)."""
    with _bar(title, unit) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(title: str, unit: str) -> Progress:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeLeft(), console=_out)


def planned(plan: Plan) -> None:
    """What will be measured."""
    space = plan.space
    numel = sum(group.numel for group in space.groups)
    say(
        f"{len(space.groups)} groups with {numel:,} weights, {space.num_options} options, "
        f"{plan.config['sensitivity']['method']} sensitivities of {plan.config['objective']} "
        f"in {len(plan.units)} work units"
    )


def reduced(reduction: Reduction) -> None:
    """What was measured."""
    model = reduction.model
    say(
        f"loss of the original {model.loss0:.6g} over {model.num_samples} samples; "
        f"asymmetry of measured second derivatives {reduction.asymmetry:.2g}"
    )


def solved(solution: dict[str, Any]) -> None:
    """What was chosen."""
    budgets = ", ".join(
        f"{name} {solution['costs'][name]:.6g} of {limit:.6g}" for name, limit in solution["budgets"].items()
    )
    gap = "no bound" if solution["gap"] is None else f"proven gap {100 * solution['gap']:.3g} %"
    say(
        f"predicted loss {solution['predicted_loss']:.6g} at {budgets or 'no budget'}; {gap} "
        f"({solution['termination']}, {solution['seconds']:.1f} s)"
    )


def refined(solution: dict[str, Any]) -> None:
    """What measured losses changed."""
    refinement = solution["refine"]
    accepted = [move for move in refinement["history"] if move["accepted"]]
    low, high = solution["expected_interval"]
    say(
        f"{len(accepted)} moves accepted of {len(refinement['history'])} tried with {refinement['evaluations']} "
        f"evaluations; expected loss {solution['expected_loss']:.6g} (90 % interval {low:.6g} to {high:.6g}), "
        f"measured {solution['measured_loss']:.6g} on held-out samples"
    )


def evaluated(values: dict[str, Any]) -> None:
    """Measured quality, side by side."""
    table = Table("model", title=f"{values['num_tokens']:,} tokens never calibrated on")
    metrics = [n for n in ("loss", "kl", "mse", "perplexity", "accuracy") if n in values]
    for name in metrics:
        table.add_column(name, justify="right")
    for model in ("original", "quantized", "uniform"):
        label = f"uniform {values['uniform_format']}" if model == "uniform" else model
        table.add_row(label, *(f"{values[name][model]:.6g}" for name in metrics))
    _out.print(table)


def summary(run: RunDir) -> None:
    """What the whole run found."""
    solution = read_json(run.solution_path, f"hpcmpq solve {run.path}")
    evaluation = read_json(run.evaluation_path, f"hpcmpq evaluate {run.path}")
    table = Table("group", "format", title="assignment")
    for group, name in solution["assignment"].items():
        table.add_row(group, name)
    _out.print(table)
    objective = evaluation["objective"]
    measured = evaluation[objective]
    say(f"predicted {objective} {solution['predicted_loss']:.6g}, measured {measured['quantized']:.6g}")
    say(f"uniform {evaluation['uniform_format']} measured {measured['uniform']:.6g}")
    say(f"report: {run.report_path}")


def status(run: RunDir) -> None:
    """Stages and units done."""
    plan = read_plan(run)
    done = sum(run.shard_path(unit.id).exists() for unit in plan.units)
    table = Table("stage", "state", "seconds")
    timings = json.loads(run.file("timings.json").read_text()) if run.file("timings.json").exists() else {}
    artefacts = {
        "plan": run.plan_path,
        "calibrate": None,
        "reduce": run.quadratic_path,
        "solve": run.solution_path,
        "refine": run.solution_path,
        "export": run.checkpoint_path,
        "evaluate": run.evaluation_path,
        "report": run.report_path,
    }
    for stage, path in artefacts.items():
        if path is None:
            state = f"{done} of {len(plan.units)} units"
        else:
            state = "done" if path.exists() else "not yet"
        seconds = timings.get(stage, {}).get("seconds")
        table.add_row(stage, state, "" if seconds is None else f"{seconds:.1f}")
    _out.print(table)
