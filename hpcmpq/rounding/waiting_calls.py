"""What blocks are given beside hidden states, such as attention masks, while it waits in the memory of the host.

Batches often share it: what the next batch is given is kept once where it has the values of the batch before, and what
all blocks of a batch are given is one tensor anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hpcmpq.models.chain.chain import Call


@dataclass(frozen=True)
class _Waiting:
    """A tensor on the host, and the device that it belongs on."""

    tensor: Tensor
    device: torch.device

    def same(self, tensor: Tensor, on_host: Tensor) -> bool:
        alike = self.device == tensor.device and self.tensor.dtype == on_host.dtype
        return alike and self.tensor.shape == on_host.shape and torch.equal(self.tensor, on_host)


@dataclass
class WaitingCalls:
    """The calls of every block for batches."""

    _batches: dict[int, tuple[Call, ...]] = field(default_factory=dict)
    _last: list[_Waiting] = field(default_factory=list)

    def __contains__(self, batch: int) -> bool:
        return batch in self._batches

    def keep(self, batch: int, calls: tuple[Call, ...]) -> None:
        """Keep a batch's."""
        before, known = self._last, dict[int, _Waiting]()

        def wait(tensor: Tensor) -> _Waiting:
            if id(tensor) not in known:
                on_host = tensor.cpu()
                alike = (waiting for waiting in before if waiting.same(tensor, on_host))
                known[id(tensor)] = next(alike, None) or _Waiting(on_host, tensor.device)
            return known[id(tensor)]

        self._batches[batch] = tuple(_each(call, Tensor, wait) for call in calls)
        self._last = list(known.values())

    def call(self, batch: int, block: int) -> Call:
        """What a block is given for a batch, on the devices that it came from."""
        return _each(self._batches[batch][block], _Waiting, lambda waiting: waiting.tensor.to(waiting.device))

    def clear(self) -> None:
        """Let go of all."""
        self._batches.clear()
        self._last.clear()


def _each(call: Call, kind: type, change: Callable[[Any], Any]) -> Call:
    """A call with other things in the place of those of a kind."""

    def changed(value: Any) -> Any:
        if isinstance(value, kind):
            return change(value)
        if type(value) in (list, tuple):
            return type(value)(map(changed, value))
        if type(value) is dict:
            return {key: changed(each) for key, each in value.items()}
        return value

    return replace(call, args=changed(call.args), kwargs=changed(call.kwargs))
