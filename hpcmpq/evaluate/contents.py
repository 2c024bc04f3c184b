"""What an evaluation of a run measures: models, data, tasks, and a hash of all that its values depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.evaluate.engines import ENGINES
from hpcmpq.evaluate.parts import DataPart, Part
from hpcmpq.evaluate.tasks import make_task
from hpcmpq.evaluate.tasks.harness import HarnessTask
from hpcmpq.models.data.kept_samples import planned_splits
from hpcmpq.plan import Plan, content_hash
from hpcmpq.quantized.losses import metric_names
from hpcmpq.space import KV_BYTES, Assignment
from hpcmpq.store.measured_losses import kept_codes
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.tables import look_up

MODELS = ("original", "quantized", "uniform")


@dataclass(frozen=True)
class Contents:
    """What is measured.

    Attributes:
        plan: Of the run.
        solution: Its solution's values.
        engine: What runs the models.
        models: {name: assignment}; the first is the original.
        uniform_format: Of the last.
        data: The config's samples.
        parts: What is shared out in chunks, the data first.
        wholes: What shares out its own work.
        hash: Of all that values depend on.
    """

    plan: Plan
    solution: dict[str, Any]
    engine: str
    models: dict[str, Assignment]
    uniform_format: str
    data: DataPart
    parts: tuple[Part, ...]
    wholes: tuple[HarnessTask, ...]
    hash: str


def contents_of(run: RunDir, engine: str | None) -> Contents:
    """What an evaluation by an engine measures, or by the config's.

    Raises:
        UserError: If nothing is solved yet, no sample is left, or the data have changed since planning.
    """
    plan, solution = read_plan(run), read_solution(run)
    config = plan.config
    engine = config.evaluation.engine if engine is None else engine
    look_up(ENGINES, engine, "engine")  # before data are read
    uniform_format = baseline_format(solution)
    uniform = plan.space.uniform(uniform_format)
    models: dict[str, Assignment] = dict(
        zip(MODELS, ({}, dict(solution["assignment"]), uniform), strict=True)
    )
    data = make_data(plan)
    tasks = [make_task(task, config) for task in config.evaluation.tasks]
    content = content_hash(
        [
            plan.fingerprint,
            engine,
            config.evaluation.sharding,
            models,
            [part.content() for part in (data, *tasks)],
            *([codes] if (codes := kept_codes(solution)) is not None else ()),
        ]
    )
    wholes = tuple(task for task in tasks if isinstance(task, HarnessTask))
    parts = (data, *(task for task in tasks if not isinstance(task, HarnessTask)))
    return Contents(plan, solution, engine, models, uniform_format, data, parts, wholes, content)


def make_data(plan: Plan) -> DataPart:
    """The config's evaluation samples.

    Raises:
        UserError: If none is left, or the data have changed since planning.
    """
    samples = planned_splits(plan).evaluation
    if not len(samples):
        raise UserError(
            "no evaluation sample is left: lower calibration.num_samples or held_out, or set evaluation.data"
        )
    metrics = metric_names(plan.config.objective, samples.labelled)
    return DataPart(samples, metrics, plan.config.calibration.samples_per_pass)


def baseline_format(solution: Mapping[str, Any]) -> str:
    """The smallest uniform format at least as large as the solution, or the largest there is.

    Size is the solution's first budgeted cost of weights, or its payload bits.
    """
    cost = next((name for name in solution["budgets"] if name != KV_BYTES), "weight_bits")
    reached = solution["costs"][cost]
    costs = {name: uniform["costs"] for name, uniform in solution["uniform"].items()}
    sizes = {name: values[cost] for name, values in costs.items() if cost in values}
    if not sizes:
        raise UserError("the groups share no format, so there is no uniform assignment to compare with")
    at_least = [name for name, size in sizes.items() if size >= reached * (1 - 1e-9)]
    return min(at_least, key=sizes.__getitem__) if at_least else max(sizes, key=sizes.__getitem__)
