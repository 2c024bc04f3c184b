"""Values of finished chunks, RUN/evaluation/<content>/<part>.<model>.<start>-<stop>.npz, until all are done.

The name existing is the only "done" mark; a file is written beside its name, fsynced and renamed. `<content>`
hashes all that a value depends on, so that what an interrupted evaluation left of another solution is no use.
In the end all values go into RUN/evaluation_samples.npz, `<part>/<model>/<metric>`, one value per item.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from hpcmpq.store.npz_files import read_finished, write_finished, write_npz
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import make_directory, remove_abandoned

Values = dict[str, np.ndarray]


class Chunk(NamedTuple):
    """Items [start, stop) of a part."""

    part: str
    start: int
    stop: int


class MeasuredChunk(NamedTuple):
    """A chunk measured with one model: what one file holds."""

    model: str
    chunk: Chunk


class Store(Protocol):
    """Where values of finished chunks go, and are found again."""

    def write(self, unit: MeasuredChunk, values: Mapping[str, np.ndarray]) -> None:
        """Keep a finished unit."""

    def read(self, unit: MeasuredChunk) -> Values | None:
        """The values of a unit, or None if it is not done."""


class Nowhere:
    """Where nothing is kept: a work unit is done as a whole."""

    def write(self, unit: MeasuredChunk, values: Mapping[str, np.ndarray]) -> None:
        """See `Store.write`."""

    def read(self, unit: MeasuredChunk) -> Values | None:
        """See `Store.read`."""
        return None


@dataclass(frozen=True)
class Results:
    """The files of one evaluation."""

    directory: Path

    def write(self, unit: MeasuredChunk, values: Mapping[str, np.ndarray]) -> None:
        """Store a finished unit."""
        write_finished(self._path(unit), values)

    def read(self, unit: MeasuredChunk) -> Values | None:
        """The values of a unit, or None if it is not done; a damaged file is removed."""
        return read_finished(self._path(unit), "measuring it anew")

    def _path(self, unit: MeasuredChunk) -> Path:
        chunk = unit.chunk
        return self.directory / f"{chunk.part}.{unit.model}.{chunk.start}-{chunk.stop}.npz"


def open_results(run: RunDir, content: str) -> Results:
    """The results of the evaluation with this content, perhaps of an earlier process."""
    directory = run.file("evaluation") / content[:16]
    make_directory(directory)
    remove_abandoned(directory)
    return Results(directory)


def finish(run: RunDir, values: Mapping[str, Mapping[str, Values]], content: str) -> None:
    """Write {part: {model: {metric: [N]}}} as one file and remove the chunks of this and older evaluations."""
    arrays = {
        f"{part}/{model}/{metric}": array
        for part, models in values.items()
        for model, metrics in models.items()
        for metric, array in metrics.items()
    }
    write_npz(run.file("evaluation_samples.npz"), {**arrays, "content": np.array(content)})
    shutil.rmtree(run.file("evaluation"), ignore_errors=True)


def joined(parts: Iterable[Values]) -> Values:
    """Values of consecutive chunks as one."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
