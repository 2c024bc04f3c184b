"""The stage itself: what to measure with which models, and where the results go."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.evaluate.engines import find_engine
from hpcmpq.evaluate.parts import DataPart, Part
from hpcmpq.evaluate.results import Chunk, MeasuredChunk, Values, finish, joined, open_results
from hpcmpq.evaluate.rounds import chunks_of, measure, measure_whole, whole_chunk
from hpcmpq.evaluate.statistics import summarise
from hpcmpq.evaluate.tasks import make_task
from hpcmpq.evaluate.tasks.harness import HarnessTask
from hpcmpq.executors.world import ALONE, World
from hpcmpq.models.data.kept_samples import planned_splits
from hpcmpq.plan import Plan, content_hash
from hpcmpq.quantized.losses import metric_names
from hpcmpq.quantized.solved import kept_codes
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution

log = logging.getLogger(__name__)

MODELS = ("original", "quantized", "uniform")


def evaluate(
    run: RunDir,
    engine: str | None = None,
    world: World = ALONE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure the solved assignment beside the original and a uniform one; write `evaluation.json`.

    An interrupted evaluation leaves its finished chunks in RUN/evaluation, and the same command goes on, with any
    number of ranks.

    Args:
        run: A solved run directory.
        engine: A name in `hpcmpq.evaluate.engines.ENGINES`, or None for the config's.
        world: This process among those that share the work; all call this together, rank 0 writes.
        on_progress: Called with the number of chunks done, over all models, and of all.

    Returns:
        The values written, on all ranks: `loss` (task loss where there are labels, else the objective), `kl` or
        `mse`, and `perplexity` (sequences) or `accuracy` (one label a sample), each for original, quantized and
        uniform, with intervals, paired differences, and `tasks`.

    Raises:
        UserError: If nothing is solved yet, or no sample is left to evaluate on.
        Interrupted: By a signal; finished chunks are stored.
    """
    plan = read_plan(run)
    config = plan.config
    solution = read_solution(run)
    uniform_format = baseline_format(solution)
    assignments: tuple[dict[str, str], ...] = (
        {},
        solution["assignment"],
        dict.fromkeys(solution["assignment"], uniform_format),
    )
    models = dict(zip(MODELS, assignments, strict=True))
    data = make_data(plan)
    samples_hash = data.samples.digest()
    if world.rank == 0:
        _say_other_samples(run, samples_hash, data.num_items)
    tasks = [make_task(task, config) for task in config.evaluation.tasks]
    wholes = [task for task in tasks if isinstance(task, HarnessTask)]
    parts: list[Part] = [data, *(task for task in tasks if not isinstance(task, HarnessTask))]
    engine = engine or config.evaluation.engine
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
    start = time.monotonic()
    with find_engine(engine)(run, plan, config, world) as opened:
        results = open_results(run, content)
        measured = measure(opened, parts, models, results, on_progress)
        measured.update(measure_whole(opened, wholes, models, results))
        facts = opened.facts()
    seconds = time.monotonic() - start
    chunks = {part.name: chunks_of(part) for part in parts}
    chunks.update({whole.name: [whole_chunk(whole)] for whole in wholes})
    arrays = by_part(chunks, measured)
    values = {
        "format_version": 1,
        **summarise(arrays),
        "uniform_format": uniform_format,
        "uniform_costs": solution["uniform"][uniform_format]["costs"],
        "num_samples": data.num_items,
        "samples_hash": samples_hash,
        "objective": config.objective,
        "engine": engine,
        "world_size": world.size,
        "seconds": seconds,
        **facts,
        "assignment": solution["assignment"],
        "fingerprint": plan.fingerprint,
    }
    if world.rank == 0:
        write_artefact(run.evaluation_path, values)
        write_artefact(run.solution_path, with_evaluated_loss(solution, values))
        finish(run, arrays, content)
    return values


def with_evaluated_loss(solution: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`solution.json` with the loss of the evaluation samples and its standard error.

    `measured_loss` is refinement's, of held-out samples; where nothing was refined it is this one.
    """
    objective = values["objective"]
    evaluated = {"": values[objective]["quantized"], "_stderr": values[f"{objective}_stderr"]["quantized"]}
    names = ["evaluated_loss"] if "refine" in solution else ["evaluated_loss", "measured_loss"]
    return {**solution, **{name + end: value for name in names for end, value in evaluated.items()}}


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


def _say_other_samples(run: RunDir, samples_hash: str, num_samples: int) -> None:
    """Warn that losses of an earlier evaluation are of other samples, where it says which."""
    try:
        before = read_json(run.evaluation_path, f"hpcmpq evaluate {run.path}")
    except UserError:
        return  # the first, or damaged
    known = before.get("samples_hash")
    if before.get("num_samples") != num_samples if known is None else known != samples_hash:
        log.warning(
            "these %d samples are others than the %s that %s was measured on: the losses of the two cannot be "
            "compared; restore evaluation.data and evaluation.num_samples to measure on the same again",
            num_samples,
            before.get("num_samples"),
            run.evaluation_path,
        )


def by_part(
    chunks: Mapping[str, Sequence[Chunk]], measured: Mapping[MeasuredChunk, Values]
) -> dict[str, dict[str, Values]]:
    """{part: {model: {metric: value per item}}} from the values of each part's chunks."""
    return {
        part: {model: joined(measured[MeasuredChunk(model, chunk)] for chunk in own) for model in MODELS}
        for part, own in chunks.items()
    }


def baseline_format(solution: Mapping[str, Any]) -> str:
    """The smallest uniform format at least as large as the solution, or the largest there is.

    Size is the solution's first budgeted cost, or its payload bits.
    """
    cost = next(iter(solution["budgets"]), "weight_bits")
    reached = solution["costs"][cost]
    costs = {name: uniform["costs"] for name, uniform in solution["uniform"].items()}
    sizes = {name: values[cost] for name, values in costs.items() if cost in values}
    if not sizes:
        raise UserError("the groups share no format, so there is no uniform assignment to compare with")
    at_least = [name for name, size in sizes.items() if size >= reached * (1 - 1e-9)]
    return min(at_least, key=sizes.__getitem__) if at_least else max(sizes, key=sizes.__getitem__)
