"""What a tracker keeps of a run: settings, numbers, the frontier, and files; read from its artefacts."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmpq.store.of_solution import read_evaluation, read_frontier
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.store.timings import read_timings


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        name: Of the run directory.
        settings: {dotted key of the config: value as text}, with the budgets and solver of the solution.
        tags: Fingerprint, versions, and why the solver stopped.
        metrics: {name: value}; a missing one was not measured.
        frontier: Its points from the smallest budget to the largest, each {name: value}; none without a frontier.
        files: Artefacts that people read.
    """

    name: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    frontier: tuple[Mapping[str, float], ...]
    files: tuple[Path, ...]


def record_of(run: RunDir) -> Record:
    """The record of a solved run.

    Raises:
        UserError: If it is not solved yet, or an artefact is damaged.
    """
    plan, solution = read_plan(run), read_solution(run)
    config = dataclasses.asdict(plan.config)
    config |= {"budgets": solution["budgets"], "solver": solution["solver"]}
    metrics = {
        name: float(solution[name])
        for name in ("predicted_loss", "objective", "bound", "gap", "expected_loss", "predicted_cross_terms")
        if solution.get(name) is not None
    }
    metrics |= {name: float(value) for name, value in solution["costs"].items()}
    metrics |= {f"seconds.{name}": float(timing["seconds"]) for name, timing in read_timings(run).items()}
    if (evaluation := read_evaluation(run, solution)) is not None:
        metrics |= {f"measured.{name}": value for name, value in _measured(evaluation)}
    frontier: list[dict[str, float]] = []
    if (values := read_frontier(run, plan)) is not None:
        for point in values["points"]:
            found = {
                values["cost"]: point["costs"][values["cost"]],
                **{k: point[k] for k in ("predicted_loss", "bound")},
            }
            frontier.append({f"frontier.{name}": float(v) for name, v in found.items() if v is not None})
    files = [run.config_path, run.plan_path, run.solution_path, run.report_path]
    files += [run.evaluation_path] if evaluation is not None else []
    files += [run.frontier_path] if values is not None else []
    return Record(
        name=run.path.resolve().name,
        settings=dict(_flat(config)),
        tags={"fingerprint": plan.fingerprint, "termination": solution["termination"], **plan.environment},
        metrics=metrics,
        frontier=tuple(frontier),
        files=tuple(path for path in files if path.is_file()),
    )


def _measured(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(metric and model, value) of all metrics on the evaluation data."""
    for metric, values in evaluation.items():
        if isinstance(values, dict) and {"original", "quantized"} <= values.keys():
            yield from (
                (f"{metric}.{model}", float(value))
                for model, value in values.items()
                if isinstance(value, int | float)
            )


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", str(value)
