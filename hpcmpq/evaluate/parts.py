"""What is measured: items whose inputs are run in batches and whose outputs become values per item.

The data that the config names are one part, every task is another. Chunks of a part depend on the part alone, so
results of interrupted runs fit together whatever the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from hpcmpq.evaluate.tails import EDGES_B, agreements, divergence_counts
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.outputs import Inputs
from hpcmpq.plan import content_hash
from hpcmpq.quantized.losses import compare, join

MOST_CHUNKS = 128
"""Chunks of a part: enough to share out, few enough for a parallel file system."""


class Part(Protocol):
    """Something to measure with every model."""

    @property
    def name(self) -> str:
        """Unique in a run; ``data`` is the config's data."""

    @property
    def needs_original(self) -> bool:
        """Whether the original's outputs are compared with."""

    @property
    def num_items(self) -> int:
        """N."""

    @property
    def items_per_chunk(self) -> int:
        """Items measured and stored together."""

    def content(self) -> str:
        """A hash of all that its values depend on, model aside."""

    def inputs(self, start: int, stop: int) -> list[Inputs]:
        """Batches of inputs, on the CPU, of the items from `start` to `stop`."""

    def values(
        self, start: int, stop: int, outputs: Iterator[Tensor], originals: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """{metric: [items]} from the outputs z [n, T, V] of each batch, and the original's if they are needed."""


@dataclass(frozen=True)
class DataPart:
    """Losses on the config's evaluation samples.

    Attributes:
        samples: On the CPU.
        metrics: See `hpcmpq.quantized.losses.metric_names`.
        samples_per_pass: Samples of one batch.
    """

    samples: Samples
    metrics: tuple[str, ...]
    samples_per_pass: int
    name: str = "data"
    needs_original: bool = True

    @property
    def num_items(self) -> int:
        """Samples."""
        return len(self.samples)

    @cached_property
    def items_per_chunk(self) -> int:
        """Whole batches."""
        return chunk_size(len(self.samples), self.samples_per_pass)

    def content(self) -> str:
        """See `Part.content`."""
        targets = None if self.samples.targets is None else self.samples.targets.tolist()
        return content_hash(
            [self.samples.content_hashes(), targets, list(self.metrics), self.samples_per_pass, len(EDGES_B)]
        )

    def inputs(self, start: int, stop: int) -> list[Inputs]:
        """See `Part.inputs`."""
        return [batch.inputs for batch in self.samples.passes(self.samples_per_pass, start, stop)]

    def values(
        self, start: int, stop: int, outputs: Iterator[Tensor], originals: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """Means over a sample's positions of each metric; `correct`, `labels`, `agreements` and `kl_counts` count
        positions, the last two where there is a divergence.
        """
        batches = self.samples.passes(self.samples_per_pass, start, stop)
        measured, same_N, counts_NB = [], [], []
        for batch, z_NTV, z0_NTV in zip(batches, outputs, originals, strict=True):
            own = batch.to(z_NTV.device)
            measured.append(compare(self.metrics, z_NTV, z0_NTV, own))
            if "kl" in self.metrics:
                same_N.append(agreements(z_NTV, z0_NTV, own.targets))
                counts_NB.append(divergence_counts(z_NTV, z0_NTV, own.targets))
        whole = join(measured)
        values = {**whole.values, "correct": whole.correct_N, "labels": whole.labels_N}
        if same_N:
            values.update(agreements=np.concatenate(same_N), kl_counts=np.concatenate(counts_NB))
        return values


@dataclass(frozen=True)
class SomeItems:
    """The items of a part from `first` to `last`, which are those of whole chunks, as a part of their own."""

    whole: Part
    first: int
    last: int

    @property
    def name(self) -> str:
        """Of the whole part."""
        return self.whole.name

    @property
    def needs_original(self) -> bool:
        """As the whole part."""
        return self.whole.needs_original

    @property
    def num_items(self) -> int:
        """Items of these chunks."""
        return self.last - self.first

    @property
    def items_per_chunk(self) -> int:
        """As the whole part."""
        return self.whole.items_per_chunk

    def content(self) -> str:
        """See `Part.content`."""
        return content_hash([self.whole.content(), self.first, self.last])

    def inputs(self, start: int, stop: int) -> list[Inputs]:
        """See `Part.inputs`."""
        return self.whole.inputs(self.first + start, self.first + stop)

    def values(
        self, start: int, stop: int, outputs: Iterator[Tensor], originals: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """See `Part.values`."""
        return self.whole.values(self.first + start, self.first + stop, outputs, originals)


def chunk_size(num_items: int, items_per_pass: int) -> int:
    """Items of a chunk: whole passes, at most `MOST_CHUNKS` chunks.

    Example:
        >>> chunk_size(64, 4), chunk_size(1000, 4)
        (4, 8)
    """
    passes = -(-num_items // (items_per_pass * MOST_CHUNKS))
    return items_per_pass * max(1, passes)
