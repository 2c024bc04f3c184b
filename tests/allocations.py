"""Counts the bytes of live tensors, so that peak memory can be checked to the byte on any machine."""

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Bytes of all tensors that operations inside read or make; `peak` is the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to make sure of that at every operation would take as long as the rest."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._look_at((*args, *kwargs.values(), result) if kwargs else (*args, result))
        return result

    def _look_at(self, values: Iterable[Any]) -> None:
        """Count the tensors among what an operation takes and gives; its only containers are sequences."""
        seen = self._seen
        for value in values:
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in seen and value.device.type != "meta":
                    self._add(storage)
            elif isinstance(value, list | tuple):
                self._look_at(value)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: Any) -> None:
            self._seen.pop(key, None)
            self.live -= size

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)


def peak_bytes(function) -> tuple[Any, int]:
    """What a function returns, and the most bytes of tensors that lived at once while it ran."""
    gc.collect()
    with Allocations() as allocations:
        result = function()
    return result, allocations.peak
