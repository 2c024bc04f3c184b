"""The next block of a streamed model, read by a thread while the one before it computes.

What is read waits in host memory: one block, and never a second one; beside it is the tensor that is just being read,
as its file holds it.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcmpq.models.stored_weights import Weights


@dataclass
class ReadAhead:
    """One block at a time, read before it is asked for.

    Attributes:
        weights: Where from.
        shapes: {parameter: its shape} of every block, in the order in which they are asked for.
    """

    weights: Weights
    shapes: Sequence[Mapping[str, torch.Size]]
    _block: int | None = None
    _reading: "_Reading | None" = None

    def start(self, k: int) -> None:
        """Begin to read block k; there may be none of that number."""
        self.forget()
        if k < len(self.shapes):
            # Memory that a thread allocates is in a heap of its own, which malloc_trim(3) does not shrink.
            places = {
                name: torch.empty(shape, dtype=self.weights.dtype_of(name))
                for name, shape in self.shapes[k].items()
            }
            self._block, self._reading = (
                k,
                _Reading(replace(self.weights, device=torch.device("cpu")), places),
            )
            self._reading.start()

    def take(self, k: int) -> dict[str, Tensor]:
        """{parameter: its value in host memory} of block k, once it is read; empty where another block was begun.

        What could not be read is missing: whoever asks for it reads it, and gets the error.
        """
        reading, begun = self._reading, self._block == k
        if reading is None or not begun:
            self.forget()
            return {}
        reading.join()
        self._block = self._reading = None
        return reading.there

    def forget(self) -> None:
        """End reading, and let go of what was read."""
        if self._reading is not None:
            self._reading.stop.set()
            self._reading.join()
        self._block = self._reading = None


class _Reading(threading.Thread):
    """Fills {parameter: its place}; `there` are those that are filled."""

    def __init__(self, weights: Weights, places: dict[str, Tensor]) -> None:
        super().__init__(name="read ahead")
        self.there: dict[str, Tensor] = {}
        self.stop = threading.Event()
        self._weights, self._places = weights, places

    @torch.no_grad()
    def run(self) -> None:
        while self._places and not self.stop.is_set():
            name = next(iter(self._places))
            try:
                self.there[name] = self._weights.read(name, self._places.pop(name))
            except Exception:  # whoever asks for it reads it again and says what is wrong
                self._places.clear()
