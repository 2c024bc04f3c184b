"""States of samples between two pieces of a model, as arrays of a shard."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from hpcmpq.rounding.pieces import ModelStates


def state_arrays(states: ModelStates, batches: Iterable[int]) -> dict[str, np.ndarray]:
    """{BATCH/MODEL/DTYPE: numbers} of some batches; numpy has no bfloat16, whose bits are kept as integers."""
    arrays: dict[str, np.ndarray] = {}
    for i in batches:
        for kind, state in states.of(i).items():
            bits = state.contiguous().view(torch.int16) if state.dtype == torch.bfloat16 else state
            arrays[f"{i}/{kind}/{str(state.dtype).removeprefix('torch.')}"] = bits.numpy()
    return arrays


def give_states(states: ModelStates, arrays: Mapping[str, np.ndarray]) -> None:
    """The inverse: have the states that arrays hold."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        batch, kind, dtype = name.split("/")
        found.setdefault(int(batch), {})[kind] = torch.from_numpy(array).view(getattr(torch, dtype))
    for i, own in found.items():
        states.given(i, own)
