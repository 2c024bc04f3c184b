"""Runs models over chunks, shared out over ranks, each finished chunk to its own file.

All ranks walk through the same rounds: for one model after the other, as many chunks as the original's outputs
fit in memory for, so that weights are changed seldom. A model that is sharded runs on all ranks or on none; a
rank without work of its own therefore runs along on inputs whose outputs it drops.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from signal import Signals
from typing import Protocol

import torch
from torch import Tensor

from hpcmpq.errors import Interrupted
from hpcmpq.evaluate.engines import EvaluationEngine
from hpcmpq.evaluate.parts import Part
from hpcmpq.evaluate.results import Chunk, MeasuredChunk, Store, Values
from hpcmpq.models.outputs import Inputs
from hpcmpq.space import Assignment


class WholePart(Protocol):
    """Something that shares out its own work over the ranks."""

    @property
    def name(self) -> str:
        """Unique in a run."""

    def content(self) -> str:
        """A hash of all that its values depend on, model aside."""

    def measure(self, engine: EvaluationEngine) -> Values:
        """{metric: [items]} with the weights that the engine has."""


MAX_KEPT_BYTES = 2**30
"""The original's outputs that a rank keeps at once to compare with."""


def chunks_of(part: Part) -> list[Chunk]:
    """The chunks of a part, in order."""
    size, count = part.items_per_chunk, part.num_items
    return [Chunk(part.name, start, min(start + size, count)) for start in range(0, count, size)]


@torch.no_grad()
def measure(
    engine: EvaluationEngine,
    parts: Sequence[Part],
    models: Mapping[str, Assignment],
    results: Store,
    on_progress: Callable[[int, int], None],
) -> dict[MeasuredChunk, Values]:
    """Measure what is missing of every part with every model.

    Args:
        engine: Runs the models; all ranks call this together.
        parts: Compared with the original or not.
        models: {name: assignment}; the first is the original.
        results: Where units are stored, and found from an earlier process.
        on_progress: Called with the number of units done and of all.

    Returns:
        The values of every unit, on all ranks.

    Raises:
        Interrupted: On all ranks, once any of them was told to stop.
    """
    by_name = {part.name: part for part in parts}
    units = [MeasuredChunk(model, chunk) for part in parts for chunk in chunks_of(part) for model in models]
    # Rank 0 looks, for all to agree: others may see a shared file system late.
    found = {unit: results.read(unit) for unit in units} if engine.rank == 0 else {}
    stored = engine.gather({unit: each for unit, each in found.items() if each is not None})
    values: dict[MeasuredChunk, Values] = stored[0]
    missing = {unit: None for unit in units if unit not in values}
    rounds = _rounds(engine, by_name, list(missing))
    mine: dict[MeasuredChunk, Values] = {}
    done = len(values)
    on_progress(done, len(units))
    for chunks in rounds:
        kept: dict[Chunk, list[Tensor]] = {}
        for model, assignment in models.items():
            is_original = not assignment
            todo = [
                MeasuredChunk(model, chunk) in missing or (is_original and by_name[chunk.part].needs_original)
                for chunk in chunks
            ]
            if not any(todo):
                continue
            with engine.assigned(assignment):
                for first in range(0, len(chunks), engine.size):
                    turn = range(first, min(first + engine.size, len(chunks)))
                    if not any(todo[place] for place in turn):
                        continue
                    own = first + engine.rank
                    chunk = chunks[own] if own < len(chunks) and todo[own] else None
                    part = by_name[chunks[first].part if chunk is None else chunk.part]
                    outputs = _outputs(engine, part, chunk)
                    if chunk is None:
                        for _ in outputs:
                            pass
                    else:
                        if is_original and part.needs_original:
                            kept[chunk] = list(outputs)
                            outputs = iter(kept[chunk])
                        unit = MeasuredChunk(model, chunk)
                        result = part.values(chunk.start, chunk.stop, outputs, kept.get(chunk, ()))
                        for _ in outputs:  # where ranks with more batches go on
                            pass
                        if unit in missing:
                            results.write(unit, result)
                            mine[unit] = result
                    done += sum(MeasuredChunk(model, chunks[place]) in missing for place in turn)
                    on_progress(done, len(units))
    for gathered in engine.gather(mine):
        values.update(gathered)
    return values


@torch.no_grad()
def measure_whole(
    engine: EvaluationEngine, parts: Sequence[WholePart], models: Mapping[str, Assignment], results: Store
) -> dict[MeasuredChunk, Values]:
    """Measure what is missing of parts that share out their own work; see `measure`.

    Raises:
        Interrupted: On all ranks, before the next model.
    """
    units = [MeasuredChunk(model, whole_chunk(part)) for part in parts for model in models]
    found = {unit: results.read(unit) for unit in units} if engine.rank == 0 else {}
    values = engine.gather({unit: each for unit, each in found.items() if each is not None})[0]
    for model, assignment in models.items():
        missing = [part for part in parts if MeasuredChunk(model, whole_chunk(part)) not in values]
        if missing:
            with engine.assigned(assignment):
                for part in missing:
                    _check_stop(engine.share((engine.stop_signal(),)))
                    unit = MeasuredChunk(model, whole_chunk(part))
                    values[unit] = part.measure(engine)
                    if engine.rank == 0:
                        results.write(unit, values[unit])
    return dict(values)


def whole_chunk(part: WholePart) -> Chunk:
    """The only chunk of a part that is measured as a whole."""
    return Chunk(part.name, 0, 0)


def _check_stop(shared: Sequence[tuple[int, ...]]) -> None:
    signal = max(numbers[-1] for numbers in shared)
    if signal:
        raise Interrupted(Signals(signal).name)


def _outputs(engine: EvaluationEngine, part: Part, chunk: Chunk | None) -> Iterator[Tensor]:
    """Outputs of a chunk's batches; as many forward passes as the rank with most batches needs.

    Raises:
        Interrupted: On all ranks together.
    """
    batches: list[Inputs] = [] if chunk is None else part.inputs(chunk.start, chunk.stop)
    shared = engine.share((len(batches), engine.stop_signal()))
    _check_stop(shared)
    filler: Inputs | None = batches[-1] if batches else None
    for place in range(max(count for count, _ in shared)):
        if place < len(batches):
            yield engine.forward(batches[place])
        else:
            if filler is None:
                filler = part.inputs(0, 1)[0]
            engine.forward(filler)


def _rounds(
    engine: EvaluationEngine, parts: Mapping[str, Part], missing: Sequence[MeasuredChunk]
) -> Iterator[list[Chunk]]:
    """Chunks that are run together, so that the originals' outputs fit: all of those that keep none."""
    todo = list(dict.fromkeys(unit.chunk for unit in missing))
    free = [chunk for chunk in todo if not parts[chunk.part].needs_original]
    for part in parts.values():
        chunks = [chunk for chunk in todo if chunk.part == part.name]
        if chunks and part.needs_original:
            batches = part.inputs(chunks[0].start, chunks[0].stop)
            num_bytes = len(batches) * engine.forward(batches[0]).nbytes
            per_rank = max(1, MAX_KEPT_BYTES // max(1, *(count for (count,) in engine.share((num_bytes,)))))
            step = per_rank * engine.size
            yield from (chunks[first : first + step] for first in range(0, len(chunks), step))
    if free:
        yield free
