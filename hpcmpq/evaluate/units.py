"""An evaluation in work units: ranges of samples under all models, over any executor; a shard holds a unit's values.

Batches are those of an evaluation in one process, and so are the numbers, bit for bit with as many threads.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace

import torch

from hpcmpq.errors import UserError
from hpcmpq.evaluate.contents import Contents, contents_of
from hpcmpq.evaluate.parts import Part, SomeItems
from hpcmpq.evaluate.results import MeasuredChunk, Nowhere, Values, joined
from hpcmpq.evaluate.rounds import chunks_of
from hpcmpq.executors import THREADS_PER_WORKER, Executor, Worker
from hpcmpq.models.data.kept_samples import already_said
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.plan import Plan, UnitOutcome, WorkUnit
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import Shard, read_shard_of, write_shard
from hpcmpq.units import run_missing

Arrays = dict[str, dict[str, Values]]
"""{part: {model: {metric: value per item}}}."""


def measure_in_units(
    run: RunDir,
    contents: Contents,
    executor: Executor,
    on_outcome: Callable[[UnitOutcome, int, int], None],
    part: tuple[int, int],
) -> Arrays:
    """Measure what is missing; the values of all parts.

    Args:
        run: The run directory.
        contents: What is measured, by engine ``torch``.
        executor: Where units run.
        on_outcome: Called with each outcome, the number of units done and of all units.
        part: See `hpcmpq.units.run_missing`.

    Raises:
        UserError: If another engine is to run, or a task shares out its own work.
        IncompleteCalibration: If a unit failed for good; all others are on disk.
    """
    if contents.engine != "torch":
        raise UserError(
            f"engine {contents.engine} starts ranks of its own; use --engine torch with --executor and --workers"
        )
    if contents.wholes:
        raise UserError(
            f"task {contents.wholes[0].name} of the harness runs in one process; leave out --executor and --workers"
        )
    measuring, own = replace(run, measuring="evaluate"), plan_of(contents)
    run_missing(measuring, own, make_worker, executor, on_outcome, part)
    values: dict[str, dict[str, list[Values]]] = {
        each.name: {model: [] for model in contents.models} for each in contents.parts
    }
    for unit in own.units:
        found: dict[str, Values] = {}
        for name, array in read_shard_of(own, measuring, unit).arrays.items():
            model, _, metric = name.partition("/")
            found.setdefault(model, {})[metric] = array
        for model, arrays in found.items():
            values[_part_of(unit, contents).name][model].append(arrays)
    return {name: {model: joined(each) for model, each in models.items()} for name, models in values.items()}


def remove_units(run: RunDir) -> None:
    """Remove the shards of this and older evaluations."""
    shutil.rmtree(run.file("evaluate"), ignore_errors=True)


def plan_of(contents: Contents) -> Plan:
    """The plan of measuring in units: as many samples each as calibration has, in whole chunks."""
    plan = contents.plan
    wanted = max(unit.sample_stop - unit.sample_start for unit in plan.units)
    units = []
    for place, part in enumerate(contents.parts):
        size = part.items_per_chunk * max(1, wanted // part.items_per_chunk)
        for start in range(0, part.num_items, size):
            name = f"{contents.hash[:16]}-{place}-{start}"
            units.append(WorkUnit(name, 0, len(plan.space.groups), start, min(start + size, part.num_items)))
    return replace(plan, units=tuple(units), fingerprint=contents.hash)


def make_worker(run: RunDir) -> Worker:
    """Load model and samples once and return the function that measures a unit."""
    from hpcmpq.evaluate.engines.torch_engine import make_engine
    from hpcmpq.evaluate.walks import measure_anyhow

    torch.set_num_threads(THREADS_PER_WORKER)
    keep_freed_memory()
    with already_said():
        contents = contents_of(run, "torch")
    engine = make_engine(run, contents.plan, contents.plan.config)

    def work(unit: WorkUnit) -> None:
        if run.shard_path(unit.id).exists():
            return
        if not unit.id.startswith(contents.hash[:16]):
            raise UserError(f"the solution has changed meanwhile; run `hpcmpq evaluate {run.path}` again")
        part = SomeItems(_part_of(unit, contents), unit.sample_start, unit.sample_stop)
        measured = measure_anyhow(engine, [part], contents.models, Nowhere(), lambda done, total: None)
        arrays = {
            f"{model}/{metric}": array
            for model in contents.models
            for metric, array in joined(measured[MeasuredChunk(model, c)] for c in chunks_of(part)).items()
        }
        write_shard(run, Shard("values", unit.id, contents.hash, part.num_items, part.num_items, arrays))

    return work


def _part_of(unit: WorkUnit, contents: Contents) -> Part:
    return contents.parts[int(unit.id.split("-")[1])]
