"""The tensors in a directory's safetensors files, by the names that its model gives them, read one at a time."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.description import read_model_json
from hpcmpq.models.joined_weights import JoinedWeight, filled, joined_weights
from hpcmpq.models.stored_headers import file_of_each, is_stored, stored_tensors
from hpcmpq.models.tensor_files import DTYPES, read_tensor

ReadRows = Callable[[str, int, int], Tensor]
"""(parameter, start, stop) → that range of its first axis."""


@dataclass
class Weights:
    """The tensors in a directory's safetensors files.

    Attributes:
        directory: The model's directory.
        files: {tensor name: file name}.
        aliases: {the model's parameter or buffer: name in the files}.
        joined: {the model's parameter: how it is made of several, or of a part of one}.
        dtype: What floating tensors are converted to.
        device: Where they go.
        float32: Parameters and buffers that are converted to float32 instead, see `kept_in_float32`.
    """

    directory: Path
    files: dict[str, str]
    aliases: dict[str, str]
    dtype: torch.dtype
    device: torch.device
    joined: dict[str, JoinedWeight] = field(default_factory=dict)
    float32: frozenset[str] = frozenset()

    def dtype_of(self, name: str) -> torch.dtype:
        """What a floating parameter or buffer is converted to."""
        return torch.float32 if name in self.float32 else self.dtype

    def stored(self, name: str) -> tuple[str, ...]:
        """Names in the files of what a parameter or buffer is made of; none if it is not there."""
        if name in self.joined:
            return self.joined[name].stored
        return (self.aliases[name],) if name in self.aliases else ()

    def source(self, name: str) -> tuple[str, str] | None:
        """The same of all parameters and buffers that are one tensor; None of what is not in the files."""
        if name in self.joined:
            return "joined", self.joined[name].name
        return ("stored", self.aliases[name]) if name in self.aliases else None

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """One parameter or buffer by the model's name, in memory that is given or new.

        Raises:
            ValueError: If `into` has another shape.
        """
        if name in self.joined:
            return self.joined[name].read(self._stored, partial(self._own, name), into)
        tensor = self._stored(self.aliases[name])
        return self._own(name, tensor) if into is None else filled(into, tensor)

    def _stored(self, stored: str) -> Tensor:
        """A tensor as a file holds it, on the CPU."""
        return read_tensor(self.directory / self.files[stored], stored)

    def _own(self, name: str, tensor: Tensor, copy: bool = False) -> Tensor:
        """In the model's dtype, on its device; a copy of a view of a file, whose pages would stay in memory."""
        dtype = self.dtype_of(name) if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype, copy=copy)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A range of the first axis of a parameter; nothing else of it is read. A scalar has one row."""
        from safetensors import safe_open

        if name in self.joined:
            return self.joined[name].rows(start, stop, self._stored, partial(self._own, name))
        stored = self.aliases[name]
        with safe_open(self.directory / self.files[stored], "pt") as file:
            stored_rows = file.get_slice(stored)
            if not stored_rows.get_shape():
                return self.read(name).reshape(1)
            return self._own(name, stored_rows[start:stop], copy=True)


def find_weights(model: nn.Module, directory: Path, dtype: torch.dtype, device: torch.device) -> Weights:
    """Where a directory's safetensors hold the parameters and buffers of its model.

    Raises:
        UserError: If one cannot be read, or a parameter is in none of them under a name that the model gives it, or in
            another shape.
    """
    files = file_of_each(directory)
    headers = stored_tensors(directory, files)
    there = names_in_model(model, files)
    made = joined_weights(model, files)
    prefix = getattr(model, "base_model_prefix", "") + "."
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    aliases: dict[str, str] = {}
    joined: dict[str, JoinedWeight] = {}
    for tied in names.values():
        wanted = [*tied, *(prefix + n for n in tied), *(n.removeprefix(prefix) for n in tied)]
        stored = next((there[n] for n in wanted if n in there), None)
        if stored is None:
            how = next((made[n] for n in wanted if n in made), None)
            if how is not None:
                joined.update(dict.fromkeys(tied, how))
                continue
            if "pooler" in tied[0].split("."):
                continue  # often not saved, and no part of the last hidden state
            raise UserError(
                f"no safetensors file in {directory} holds {tied[0]} under that name, or what transformers makes it "
                "of; set model.stream: false and evaluation.engine: torch"
            )
        if headers[stored].shape != list(parameters[tied[0]].shape):
            raise UserError(
                f"{files[stored]} in {directory} holds {stored} as {headers[stored].shape}, and config.json makes it "
                f"{list(parameters[tied[0]].shape)}; check that it belongs to these weights"
            )
        aliases.update(dict.fromkeys(tied, stored))
    for name, _ in model.named_buffers():
        wanted = [name, prefix + name, name.removeprefix(prefix)]
        stored = next((there[n] for n in wanted if n in there), None)
        if stored is not None:
            aliases[name] = stored
    wide = kept_in_float32(model, [*aliases, *joined], dtype)
    return Weights(directory, files, aliases, dtype, device, joined, wide)


def kept_in_float32(model: nn.Module, names: Iterable[str], dtype: torch.dtype) -> frozenset[str]:
    """Those parameters and buffers that transformers loads in float32 where the model is loaded in `dtype`.

    What corrects the scores of experts is such a buffer: rounded, it would choose other experts.
    """
    plan_of = getattr(model, "_get_dtype_plan", None)  # what transformers 4 lacks
    plan: Iterable[str] = plan_of(dtype) if callable(plan_of) else ()
    patterns = [re.compile(pattern.replace("*", ".*")) for pattern in plan]
    return frozenset(name for name in names if any(pattern.search(name) for pattern in patterns))


def names_in_model(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """{name that transformers gives a stored tensor when loading: its name in the files}, of the names in files.

    transformers 5 renames layers of some models (ViT's ``attention.attention.query`` is ``attention.q_proj``) and
    saves them under the old names. Tensors that it also splits or joins are left out.
    """
    renamed = _renamed(model, names)
    return {name: stored for stored, (name, whole) in renamed.items() if whole}


def _renamed(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """{stored name: (the model's, whether it is that tensor as it is, and neither a part nor several of them)}."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4 stores the model's own names
        return {name: (name, True) for name in names}
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    found = {name: rename_source_key(name, renamings, converters) for name in names}
    return {name: (renamed, converter is None) for name, (renamed, converter) in found.items()}


def unused_tensors(model: nn.Module, directory: Path) -> dict[str, str]:
    """{tensor name: file name} of what a directory's safetensors hold and its model has no place for.

    Heads that predict several tokens ahead are such tensors: engines use them, transformers loads the rest. Empty
    where a directory has no safetensors, or says that it is quantized already: what belongs to a scale is not unused.
    """
    if "quantization_config" in read_model_json(directory):
        return {}
    if not is_stored(directory):
        return {}
    files = file_of_each(directory)
    prefix = getattr(model, "base_model_prefix", "") + "."
    state = model.state_dict()
    return {
        stored: files[stored]
        for stored, (name, _) in _renamed(model, files).items()
        if not any(n in state for n in (name, prefix + name, name.removeprefix(prefix)))
    }


def dtypes_in_files(weights: Weights) -> dict[str, torch.dtype | None]:
    """{tensor name: dtype} of the floating tensors in a directory's files, None for others, from the headers."""
    stored = stored_tensors(weights.directory, weights.files)
    return {name: DTYPES.get(tensor.dtype) for name, tensor in stored.items()}


def tensors_in(directory: Path) -> dict[str, str]:
    """{tensor: name of its file} of all safetensors in a directory, whatever an index says."""
    from safetensors import safe_open

    found: dict[str, str] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    return found
