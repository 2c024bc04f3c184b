"""The tensors in a directory's safetensors files, by the names that its model gives them, read one at a time."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError

_STORED = {"model.safetensors": "model.safetensors.index.json"}


@dataclass
class Weights:
    """The tensors in a directory's safetensors files.

    Attributes:
        directory: The model's directory.
        files: {tensor name: file name}.
        aliases: {the model's parameter or buffer: name in the files}.
        dtype: What floating tensors are converted to.
        device: Where they go.
    """

    directory: Path
    files: dict[str, str]
    aliases: dict[str, str]
    dtype: torch.dtype
    device: torch.device

    def read(self, name: str) -> Tensor:
        """One parameter or buffer by the model's name."""
        from safetensors import safe_open

        stored = self.aliases[name]
        with safe_open(self.directory / self.files[stored], "pt") as file:
            tensor = file.get_tensor(stored)
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        # A copy: the file's own pages would stay in memory as long as the tensor.
        return tensor.to(device=self.device, dtype=dtype, copy=True)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A range of the first axis of a parameter; nothing else of it is read. A scalar has one row."""
        from safetensors import safe_open

        stored = self.aliases[name]
        with safe_open(self.directory / self.files[stored], "pt") as file:
            stored_rows = file.get_slice(stored)
            if not stored_rows.get_shape():
                return self.read(name).reshape(1)
            tensor = stored_rows[start:stop]
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype, copy=True)


def find_weights(model: nn.Module, directory: Path, dtype: torch.dtype, device: torch.device) -> Weights:
    """Where a directory's safetensors hold the parameters and buffers of its model.

    Raises:
        UserError: If a parameter is in none of them under a name that the model gives it.
    """
    files = _files(directory)
    there = names_in_model(model, files)
    prefix = getattr(model, "base_model_prefix", "") + "."
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    aliases = {}
    for tied in names.values():
        wanted = [*tied, *(prefix + n for n in tied), *(n.removeprefix(prefix) for n in tied)]
        stored = next((there[n] for n in wanted if n in there), None)
        if stored is None:
            if "pooler" in tied[0].split("."):
                continue  # often not saved, and no part of the last hidden state
            raise UserError(
                f"no safetensors file in {directory} holds {tied[0]} under that name, as where transformers joins "
                "experts when it loads them; set model.stream: false and evaluation.engine: torch"
            )
        aliases.update(dict.fromkeys(tied, stored))
    for name, _ in model.named_buffers():
        wanted = [name, prefix + name, name.removeprefix(prefix)]
        stored = next((there[n] for n in wanted if n in there), None)
        if stored is not None:
            aliases[name] = stored
    return Weights(directory, files, aliases, dtype, device)


def names_in_model(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """{name that transformers gives a stored tensor when loading: its name in the files}, of the names in files.

    transformers 5 renames layers of some models (ViT's ``attention.attention.query`` is ``attention.q_proj``) and
    saves them under the old names. Tensors that it also splits or joins are left out.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 stores the model's own names
        return {name: name for name in names}
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    found = ((name, *rename_source_key(name, renamings, converters)) for name in names)
    return {renamed: name for name, renamed, converter in found if converter is None}


def _files(directory: Path) -> dict[str, str]:
    from safetensors import safe_open

    for single, index in _STORED.items():
        if (directory / index).is_file():
            return dict(json.loads((directory / index).read_text(encoding="utf-8"))["weight_map"])
        if (directory / single).is_file():
            with safe_open(directory / single, "pt") as file:
                return dict.fromkeys(file.keys(), single)
    raise UserError(f"{directory} has no model.safetensors to stream from; set model.stream: false")
