"""The stage itself: what to measure with which models, and where the results go."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.evaluate.contents import MODELS, Contents, contents_of
from hpcmpq.evaluate.engines import find_engine
from hpcmpq.evaluate.results import Chunk, MeasuredChunk, Values, finish, joined, open_results
from hpcmpq.evaluate.rounds import chunks_of, measure_whole, whole_chunk
from hpcmpq.evaluate.statistics import summarise
from hpcmpq.evaluate.units import Arrays, measure_in_units, remove_units
from hpcmpq.evaluate.walks import measure_anyhow
from hpcmpq.executors import Executor
from hpcmpq.executors.world import ALONE, World
from hpcmpq.plan import UnitOutcome
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.measured_losses import kept_codes
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import solution_now

log = logging.getLogger(__name__)


def evaluate(
    run: RunDir,
    engine: str | None = None,
    world: World = ALONE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    executor: Executor | None = None,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Measure the solved assignment beside the original and a uniform one; write `evaluation.json`.

    An interrupted evaluation leaves its finished chunks in RUN/evaluation, and the same command goes on, with any
    number of ranks; one in work units leaves shards in RUN/evaluate.

    Args:
        run: A solved run directory.
        engine: A name in `hpcmpq.evaluate.engines.ENGINES`, or None for the config's.
        world: This process among those that share the work; all call this together, rank 0 writes.
        on_progress: Called with the number of chunks done, over all models, and of all; or with that of units.
        executor: Where work units run, with engine ``torch``; None measures in this process, or over ranks.
        part: (i, n): of n processes with executors that share the run directory this is number i.

    Returns:
        The values written, on all ranks: `loss` (task loss where there are labels, else the objective), `kl` or
        `mse`, and `perplexity` (sequences) or `accuracy` (one label a sample), each for original, quantized and
        uniform, with intervals, paired differences, and `tasks`.

    Raises:
        UserError: If nothing is solved yet, no sample is left to evaluate on, or something else was solved meanwhile.
        Interrupted: By a signal; finished chunks are stored.
        IncompleteCalibration: If a work unit failed for good; all others are on disk.
    """
    contents = contents_of(run, engine)
    data, solution = contents.data, contents.solution
    samples_hash = data.samples.digest()
    if world.rank == 0:
        _say_other_samples(run, samples_hash, data.num_items)
    start = time.monotonic()
    if executor is None:
        arrays, facts = _measured_here(run, contents, world, on_progress)
    else:
        arrays, facts = _measured_in_units(run, contents, executor, on_progress, part), {}
    values = {
        "format_version": 1,
        **summarise(arrays),
        "uniform_format": contents.uniform_format,
        "uniform_costs": solution["uniform"][contents.uniform_format]["costs"],
        "num_samples": data.num_items,
        "samples_hash": samples_hash,
        "objective": contents.plan.config.objective,
        "engine": contents.engine,
        "world_size": world.size,
        "seconds": time.monotonic() - start,
        **facts,
        "assignment": solution["assignment"],
        "codes": kept_codes(solution),
        "fingerprint": contents.plan.fingerprint,
    }
    if world.rank == 0:
        now = solution_now(run, solution, f"hpcmpq evaluate {run.path}")
        write_artefact(run.evaluation_path, values)
        write_artefact(run.solution_path, with_evaluated_loss(now, values))
        finish(run, arrays, contents.hash)
        if part[1] == 1:
            remove_units(run)
    return values


def _measured_here(
    run: RunDir, contents: Contents, world: World, on_progress: Callable[[int, int], None]
) -> tuple[Arrays, dict[str, Any]]:
    """The values of all parts by the engine in this process, or over its ranks, and what to report about it."""
    parts, wholes = contents.parts, contents.wholes
    with find_engine(contents.engine)(run, contents.plan, contents.plan.config, world) as opened:
        results = open_results(run, contents.hash)
        measured = measure_anyhow(opened, parts, contents.models, results, on_progress)
        measured.update(measure_whole(opened, wholes, contents.models, results))
        facts = opened.facts()
    chunks = {part.name: chunks_of(part) for part in parts}
    chunks.update({whole.name: [whole_chunk(whole)] for whole in wholes})
    return by_part(chunks, measured), facts


def _measured_in_units(
    run: RunDir,
    contents: Contents,
    executor: Executor,
    on_progress: Callable[[int, int], None],
    part: tuple[int, int],
) -> Arrays:
    def on_outcome(outcome: UnitOutcome, done: int, total: int) -> None:
        if outcome.error:
            again = "" if outcome.final else "; trying again"
            log.warning("unit %s: %s%s", outcome.unit, outcome.error, again)
        on_progress(done, total)

    return measure_in_units(run, contents, executor, on_outcome, part)


def with_evaluated_loss(solution: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`solution.json` with the loss of the evaluation samples and its standard error.

    `measured_loss` is that of held-out samples where the solution was refined or rounded again, else this one.
    """
    objective = values["objective"]
    evaluated = {"": values[objective]["quantized"], "_stderr": values[f"{objective}_stderr"]["quantized"]}
    held_out = "refine" in solution or kept_codes(solution) is not None
    names = ["evaluated_loss"] if held_out else ["evaluated_loss", "measured_loss"]
    return {**solution, **{name + end: value for name in names for end, value in evaluated.items()}}


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


def by_part(chunks: Mapping[str, Sequence[Chunk]], measured: Mapping[MeasuredChunk, Values]) -> Arrays:
    """{part: {model: {metric: value per item}}} from the values of each part's chunks."""
    return {
        part: {model: joined(measured[MeasuredChunk(model, chunk)] for chunk in own) for model in MODELS}
        for part, own in chunks.items()
    }
