"""The files of a streamed model with other tensors in the place of some, block after block: one is in memory at a time.

Tensors keep the names that the original's files give them. Those that the model does not use are kept as they are.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from hpcmpq.export.safetensors_shards import MAX_SHARD_BYTES, SafetensorsShards, room_for
from hpcmpq.models.load import quiet_transformers
from hpcmpq.models.split_weights import taken_apart
from hpcmpq.models.stored_weights import unused_tensors
from hpcmpq.models.streaming import Streamed

PARTS = 5
"""Most tensors that stand for one weight: codes, scales, zero points, a shape or a second scale; an expert's bias."""

_LONGEST_END = "_zero_point_packed"


def write_streamed(
    streamed: Streamed,
    directory: Path,
    stand_for: Callable[[str, Tensor], dict[str, Tensor] | Tensor],
    names: Iterable[str] = (),
    max_bytes: int = MAX_SHARD_BYTES,
) -> tuple[str, ...]:
    """Write config and weights.

    Args:
        streamed: The original.
        directory: Where to write.
        stand_for: (the model's name, tensor in the run's dtype) → what is written instead, by name, or other values
            for the same places in the files; the model has the values of the tensor's block meanwhile.
        names: What is written instead besides, up to the ends of names.
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
    room = room_for([*weights.files, *(name + _LONGEST_END for name in names for _ in range(PARTS))])
    shards = SafetensorsShards(directory, room, max_bytes)
    for name, tensor in tensors_in_turn(streamed):
        made = stand_for(name, tensor)
        for written, value in (made if isinstance(made, dict) else in_files(streamed, name, made)).items():
            shards.add(written, value)
    for name, file_name in unused.items():
        with safe_open(weights.directory / file_name, "pt") as file:
            shards.add(name, file.get_tensor(name))
    shards.end()
    return tuple(sorted(unused))


def in_files(streamed: Streamed, name: str, value: Tensor) -> dict[str, Tensor]:
    """{name in the files: its part} of a value of a tensor."""
    weights = streamed.weights
    return (
        {weights.aliases[name]: value}
        if name in weights.aliases
        else taken_apart(streamed.model, name, value)
    )


@torch.no_grad()
def tensors_in_turn(streamed: Streamed) -> Iterator[tuple[str, Tensor]]:
    """(the model's name, its value) of everything in the files, what is tied once.

    First what lies outside the blocks, then block after block, whose values the model has meanwhile.
    """
    model, inside = streamed.model, streamed.names_by_block()
    sources = {
        name: streamed.weights.source(name) for name in [*streamed.weights.aliases, *streamed.weights.joined]
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers())
    streamed_names = {name for names in inside for name in names}
    done: set[tuple[str, str] | None] = set()
    for name, source in sources.items():
        if name not in streamed_names and source not in done:
            done.add(source)
            yield name, parameters[name] if name in parameters else buffers[name]
    for k, names in enumerate(inside):
        with streamed.resident(k):
            for name in names:
                if name in sources and sources[name] not in done:
                    done.add(sources[name])
                    yield name, model.get_parameter(name)
