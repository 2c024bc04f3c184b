"""Measuring a streamed model: a walk of as many chunks as may wait together, under all models side by side.

Of a chunk the original's outputs are in memory, and of one batch at a time another model's, when the two are compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hpcmpq.evaluate.engines import EvaluationEngine
from hpcmpq.evaluate.parts import Part
from hpcmpq.evaluate.results import Chunk, MeasuredChunk, Store, Values
from hpcmpq.evaluate.rounds import chunks_of, measure
from hpcmpq.quantized.side_by_side import Ended, SideBySide
from hpcmpq.space import Assignment


def measure_anyhow(
    engine: EvaluationEngine,
    parts: Sequence[Part],
    models: Mapping[str, Assignment],
    results: Store,
    on_progress: Callable[[int, int], None],
) -> dict[MeasuredChunk, Values]:
    """As `hpcmpq.evaluate.rounds.measure`, side by side where the engine can."""
    walk = engine.side_by_side(parts[0].inputs(0, 1)[0])
    if walk is None:
        return measure(engine, parts, models, results, on_progress)
    return measure_walking(walk, parts, models, results, on_progress)


@torch.no_grad()
def measure_walking(
    walk: SideBySide,
    parts: Sequence[Part],
    models: Mapping[str, Assignment],
    results: Store,
    on_progress: Callable[[int, int], None],
) -> dict[MeasuredChunk, Values]:
    """Measure what is missing of every part with every model; see `hpcmpq.evaluate.rounds.measure`."""
    units = [MeasuredChunk(model, chunk) for part in parts for chunk in chunks_of(part) for model in models]
    found = {unit: results.read(unit) for unit in units}
    values = {unit: each for unit, each in found.items() if each is not None}
    on_progress(len(values), len(units))
    for part in parts:
        chunks = [
            chunk
            for chunk in chunks_of(part)
            if any(MeasuredChunk(model, chunk) not in values for model in models)
        ]
        inputs = [part.inputs(chunk.start, chunk.stop) for chunk in chunks]
        for turn in walk.together(len(models), inputs):
            ended = walk.through(list(models.values()), [batch for place in turn for batch in inputs[place]])
            first = 0
            for place in turn:
                chunk, batches = chunks[place], range(first, first + len(inputs[place]))
                first = batches.stop
                for unit, each in _values(ended, part, chunk, models, batches):
                    if unit not in values:
                        results.write(unit, each)
                        values[unit] = each
                on_progress(len(values), len(units))
    return values


def _values(
    ended: Ended, part: Part, chunk: Chunk, models: Mapping[str, Assignment], batches: range
) -> Iterator[tuple[MeasuredChunk, Values]]:
    """The values of one chunk under every model."""
    originals: list[Tensor] = []
    for number, model in enumerate(models):
        outputs: Iterator[Tensor] = map(partial(ended.outputs, number), batches)
        if not number and part.needs_original:
            originals = list(outputs)
            outputs = iter(originals)
        yield MeasuredChunk(model, chunk), part.values(chunk.start, chunk.stop, outputs, originals)
