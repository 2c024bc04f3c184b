"""Tensors of the original's files that its model does not use, kept in a checkpoint as they are.

Engines use some of them, such as heads that predict several tokens ahead, which transformers does not load.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from hpcmpq.models.stored_headers import stored_tensors
from hpcmpq.models.stored_weights import tensors_in, unused_tensors
from hpcmpq.store.json_files import write_json

INDEX = "model.safetensors.index.json"
KEPT = "model-unused.safetensors"


def keep_unused(model: nn.Module, original: Path, attempt: Path) -> tuple[str, ...]:
    """Write them to a file of their own, which the index names; return their names.

    Args:
        model: The original.
        original: Its directory.
        attempt: With the safetensors of all that the model does use.
    """
    files = tensors_in(attempt)
    unused = {name: file for name, file in unused_tensors(model, original).items() if name not in files}
    if not unused:
        return ()
    tensors = {}
    for name, file_name in unused.items():
        with safe_open(original / file_name, "pt") as file:
            tensors[name] = file.get_tensor(name)
    save_file(tensors, attempt / KEPT, metadata={"format": "pt"})
    write_index(attempt, files | dict.fromkeys(tensors, KEPT))
    return tuple(sorted(tensors))


def write_index(attempt: Path, files: Mapping[str, str]) -> None:
    """Write the index of {tensor: file}, with the bytes of all numbers and what else an index there says."""
    place = attempt / INDEX
    before = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    tensors = stored_tensors(attempt, files).values()
    total_size = sum(tensor.itemsize * math.prod(tensor.shape) for tensor in tensors)
    metadata = {**before.get("metadata", {}), "total_size": total_size}
    write_json(place, {**before, "metadata": metadata, "weight_map": dict(files)})


def say_kept(names: tuple[str, ...]) -> list[str]:
    """A clause on what was kept, if anything was."""
    return [_say("with", names, " as they are")] if names else []


def say_left_out(model: nn.Module, original: Path) -> list[str]:
    """A clause on what a file without a place for such tensors lacks, if there are any."""
    names = tuple(sorted(unused_tensors(model, original)))
    return [_say("without", names, "")] if names else []


def _say(word: str, names: tuple[str, ...], end: str) -> str:
    return f"{word} {len(names)} tensors that the model does not use{end} (first {names[0]})"
