"""The dtype that a directory's weights, and checkpoints of what is not searched, are stored in; whether all fit it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.formats import FORMATS
from hpcmpq.models.description import describe_model
from hpcmpq.models.stored_headers import file_of_each, is_stored, stored_tensors
from hpcmpq.models.stored_weights import Weights, dtypes_in_files, names_in_model
from hpcmpq.models.tensor_files import DTYPES
from hpcmpq.models.weights import as_matrix
from hpcmpq.settings import ModelConfig
from hpcmpq.space import SearchSpace


def stored_dtype(model: ModelConfig) -> torch.dtype | None:
    """What a Hugging Face directory says its weights are stored in, else float32; None for a factory's model."""
    if model.path is None:
        return None
    dtype: torch.dtype = getattr(torch, describe_model(model).dtype or "float32")
    return dtype


def wider_dtypes(
    model: nn.Module, directory: str | None, dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """{parameter or buffer: dtype} of those that files keep wider than most of their numbers, which are in `dtype`.

    Corrections of experts' scores and decays of state-space models are such tensors: rounded, they choose otherwise.
    Of files that are wider as a whole than their config says, none is.

    Args:
        model: Of the directory; it needs no values.
        directory: With safetensors, or without.
        dtype: What its config says; None where it says nothing.
    """
    if directory is None or dtype is None or not is_stored(Path(directory)):
        return {}
    headers = stored_tensors(Path(directory), file_of_each(Path(directory)))
    kinds = {name: DTYPES[header.dtype] for name, header in headers.items() if header.dtype in DTYPES}
    numel = {name: math.prod(headers[name].shape) for name in kinds}
    if 2 * sum(numel[name] for name, kind in kinds.items() if kind == dtype) < sum(numel.values()):
        return {}
    wide = [name for name, kind in kinds.items() if kind.itemsize > dtype.itemsize]
    there, prefix = names_in_model(model, wide), getattr(model, "base_model_prefix", "") + "."
    own = {name for named in (model.named_parameters, model.named_buffers) for name, _ in named()}
    found = {}
    for name, stored in there.items():
        places = (each for each in (name, prefix + name, name.removeprefix(prefix)) if each in own)
        if (place := next(places, None)) is not None:
            found[place] = kinds[stored]
    return found


def check_stored_dtype(
    model: nn.Module,
    directory: str,
    dtype: torch.dtype | None,
    weights: Weights | None = None,
    wider: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Refuse a `config.json` whose dtype turns finite weights into infinite ones.

    Args:
        model: Loaded, or without the values of what `weights` reads.
        directory: Of the model.
        dtype: What its `config.json` says; None where it says nothing.
        weights: Where values that are not in memory come from; what the files store in `dtype` is not read.
        wider: From `wider_dtypes`: what is not stored in `dtype`.

    Raises:
        UserError: Naming the first weight that does not fit and its value.
    """
    if dtype is None or not dtype.is_floating_point:
        return
    largest = torch.finfo(dtype).max
    for name, tensor in _values(model, dtype, weights):
        if (
            name in (wider or {})
            or not tensor.is_floating_point()
            or torch.finfo(tensor.dtype).max <= largest
        ):
            continue
        infinite = torch.isinf(tensor.to(dtype)) & torch.isfinite(tensor)
        if infinite.any():
            value = float(tensor[infinite][0])
            raise UserError(
                f"{name} holds {value:g}, and {directory}/config.json says that weights are stored in "
                f'{str(dtype).removeprefix("torch.")}, which ends at {largest:g}; set "dtype" there to bfloat16 or '
                "float32"
            )


def check_scales(model: nn.Module, space: SearchSpace, dtype: torch.dtype) -> None:
    """Refuse weights whose scales may be beyond the dtype of a file's scales.

    Raises:
        UserError: Naming the first such weight.
    """
    for group, formats in zip(space.groups, space.formats, strict=True):
        bits = [FORMATS[name].num_bits for name in formats if FORMATS[name].scaled]
        for member in group.members if bits else ():
            parameter = model.get_parameter(member.parameter)
            if parameter.is_meta:
                continue
            largest = float(as_matrix(parameter, member).abs().max())
            if largest / (2 ** (min(bits) - 1) - 0.5) > torch.finfo(dtype).max:
                raise UserError(
                    f"{member.parameter} holds {largest:g}, whose scale is beyond the "
                    f"{str(dtype).removeprefix('torch.')} of the file's scales; add it to groups.exclude"
                )


def _values(model: nn.Module, dtype: torch.dtype, weights: Weights | None) -> Iterator[tuple[str, Tensor]]:
    stored = dtypes_in_files(weights) if weights is not None else {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        if not tensor.is_meta:
            yield name, tensor
        elif weights is not None and any(stored[each] != dtype for each in weights.stored(name)):
            yield name, weights.read(name)
