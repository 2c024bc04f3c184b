"""The files of a streamed model with other tensors in the place of some, block after block: one is in memory at a time.

Tensors keep the names that the original's files give them. Those that the model does not use are kept as they are.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hpcmpq.export.safetensors_shards import MAX_SHARD_BYTES, SafetensorsShards, room_for
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.stored_weights import unused_tensors
from hpcmpq.models.streaming import Streamed

PARTS = 4
"""Most tensors that stand for one weight: codes, scales, zero points, a shape or a second scale."""

_LONGEST_END = "_zero_point_packed"


def write_streamed(
    streamed: Streamed,
    directory: Path,
    stand_for: Callable[[str, str, Tensor], dict[str, Tensor]],
    max_bytes: int = MAX_SHARD_BYTES,
) -> tuple[str, ...]:
    """Write config and weights.

    Args:
        streamed: The original.
        directory: Where to write.
        stand_for: (the model's name, name in the files, tensor in the run's dtype) → what is written instead; the
            model has the values of the tensor's block meanwhile.
        max_bytes: Of a file.

    Returns:
        Names of tensors that the model does not use; they are written as they are.
    """
    weights = streamed.weights
    with quiet_transformers():
        streamed.model.save_pretrained(directory, state_dict={})  # type: ignore[operator]
    for path in directory.glob("*.safetensors*"):
        path.unlink()  # without tensors
    unused = unused_tensors(streamed.model, weights.directory)
    stored = [weights.aliases[name] for name in weights.aliases]
    names = [*unused, *(name + _LONGEST_END for name in [*stored, *weights.aliases] for _ in range(PARTS))]
    shards = SafetensorsShards(directory, room_for(names), max_bytes)
    for name, tensor in tensors_in_turn(streamed):
        for written, value in stand_for(name, weights.aliases[name], tensor).items():
            shards.add(written, value)
    for name, file_name in unused.items():
        with safe_open(weights.directory / file_name, "pt") as file:
            shards.add(name, file.get_tensor(name))
    shards.end()
    return tuple(sorted(unused))


@torch.no_grad()
def tensors_in_turn(streamed: Streamed) -> Iterator[tuple[str, Tensor]]:
    """(the model's name, its value) of everything in the files, what is tied once.

    First what lies outside the blocks, then block after block, whose values the model has meanwhile.
    """
    model, inside, aliases = streamed.model, streamed.names_by_block(), streamed.weights.aliases
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers())
    streamed_names = {name for names in inside for name in names}
    done: set[str] = set()
    for name in aliases:
        if name not in streamed_names and aliases[name] not in done:
            done.add(aliases[name])
            yield name, parameters[name] if name in parameters else buffers[name]
    for k, names in enumerate(inside):
        with streamed.resident(k):
            for name in names:
                if name in aliases and aliases[name] not in done:
                    done.add(aliases[name])
                    yield name, model.get_parameter(name)
