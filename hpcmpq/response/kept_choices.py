"""Choices of experts that options keep: routers choose as they did in the model that the options change.

An option moves what later routers see, and some tokens get other experts: a jump, which no quadratic adds up (see
docs/mixtures.md). With choices kept, an option's displacement is smooth; the same option with its own choices shows
what flips cost. Routers are known by what they do: they call `topk`. In a pass that is recorded the entries that it
chose are kept, and in one that replays them these entries are taken, with the values that they have there.
"""

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hpcmpq.models.routers import is_topk, value_and_axis

WHOLE = "model"
"""The place of whole passes; where there were some, for want of passes through blocks, they alone are counted."""


@dataclass
class KeptChoices:
    """What was chosen in each place of a model, such as a block.

    Attributes:
        active: Whether passes are recorded and replayed at all.
        num_experts: Of a layer; 0 where nobody counts the tokens of each.
    """

    active: bool = False
    num_experts: int = 0
    _chosen: dict[Hashable, list[Tensor]] = field(default_factory=dict)
    _among: dict[Hashable, list[int]] = field(default_factory=dict)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, options keep the choices."""
        self.active = True
        try:
            yield
        finally:
            self.active = False
            self._chosen.clear()
            self._among.clear()

    def tokens(self, num_samples: int) -> np.ndarray | None:
        """How many tokens of each sample each expert was given, by router in the order they ran, int64 [N, L, E].

        A choice among another number of things is no router's. None where nobody counts, or no router was seen.

        Args:
            num_samples: Of the recorded passes, whose tokens follow one another.
        """
        layers = []
        for place in [WHOLE] if WHOLE in self._chosen else list(self._chosen):
            for index, size in zip(self._chosen[place], self._among[place], strict=True):
                if size == self.num_experts:
                    chosen_NC = index.reshape(num_samples, -1).cpu()
                    counts_NE = torch.zeros(num_samples, size, dtype=torch.int64)
                    layers.append(counts_NE.scatter_add_(1, chosen_NC, torch.ones_like(chosen_NC)).numpy())
        return np.stack(layers, axis=1) if layers else None

    def recording(self, place: Hashable) -> AbstractContextManager[Any]:
        """Context of one pass through a place whose choices are to be kept."""
        if not self.active:
            return nullcontext()
        self._chosen[place], self._among[place] = [], []
        return _Recorded(self._chosen[place], self._among[place])

    def replaying(self, place: Hashable) -> AbstractContextManager[Any]:
        """Context of one pass through a place that was recorded, with the same choices.

        The pass may be of several batches like the recorded one, one after another along the first axis.
        """
        return _Replayed(self._chosen[place]) if self.active else nullcontext()


class _Recorded(TorchFunctionMode):
    def __init__(self, chosen: list[Tensor], among: list[int]) -> None:
        super().__init__()
        self._chosen, self._among = chosen, among

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if is_topk(func):
            value, axis = value_and_axis(*args, **(kwargs or {}))
            self._chosen.append(result.indices)
            self._among.append(value.shape[axis])
        return result


class _Replayed(TorchFunctionMode):
    def __init__(self, chosen: list[Tensor]) -> None:
        super().__init__()
        self._left = list(chosen)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_topk(func):
            return func(*args, **(kwargs or {}))
        value, axis = value_and_axis(*args, **(kwargs or {}))
        indices = self._left.pop(0)
        count = value.shape[0] // indices.shape[0] if indices.ndim > 1 else 1
        if count > 1:
            indices = indices.repeat(count, *[1] * (indices.ndim - 1))
        return torch.return_types.topk((value.gather(axis, indices), indices))
