"""A compressed checkpoint that transformers cannot load packed: compressed-tensors unpacks, transformers puts together.

transformers reads the experts of all layers of a checkpoint in one format, vLLM those of each layer in its own, and
packed zero points it rejects. So tensors are unpacked here one by one, by the library whose layout it is and the scheme
that names them, and transformers loads what comes out as it loads the original.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.description import read_model_json
from hpcmpq.models.joined_weights import joined_weights
from hpcmpq.models.layer_kinds import are_experts, is_transposed
from hpcmpq.models.stored_weights import tensors_in
from hpcmpq.models.tensor_files import read_tensor

_PARTS = ("packed", "scale", "shape", "global_scale", "zero_point")


def load_decompressed(architecture: str, directory: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a directory of compressed tensors, with plain weights.

    Args:
        architecture: Its class in transformers.
        directory: With config.json and safetensors.
        dtype: Of the model, and of scales before anything is multiplied by them.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    del config.quantization_config
    made = getattr(transformers, architecture)
    with torch.device("meta"):
        bare = made(config)
    tensors = put_together(bare, decompressed(directory, dtype))
    model: nn.Module = made.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, trust_remote_code=False
    )
    return model


def put_together(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with fused experts in place of those of each that transformers does not fuse itself.

    Args:
        model: Whose experts they are; its parameters need no values.
        tensors: {name: tensor}, experts as ``EXPERTS.0.gate_proj.weight`` and so on, or ``w1``, ``w3`` and ``w2``.
    """
    found, fused_by_transformers = dict(tensors), joined_weights(model, tensors)
    for path, module in model.named_modules():
        for own in module._parameters if are_experts(module) else ():
            name, parameter = f"{path}.{own}", module._parameters[own]
            if parameter is None or name in found or name in fused_by_transformers:
                continue
            layer, end = (own.removesuffix("_bias"), "bias") if own.endswith("_bias") else (own, "weight")
            alike = [f"{path}.{{}}.{each}.{end}" for each in _LAYERS.get(layer, ())]
            parts = [
                [found.pop(each.format(expert)) for expert in range(len(parameter))]
                for each in alike if each.format(0) in found
            ]  # fmt: skip
            if not parts:
                continue
            by_turns = getattr(module, "is_concatenated", True) is False
            stacks = [torch.stack(part) for part in parts]
            whole = torch.stack(stacks, 2).flatten(1, 2) if by_turns else torch.cat(stacks, 1)
            found[name] = whole.mT.contiguous() if end == "weight" and is_transposed(module) else whole
    return found


_LAYERS = {
    "gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"),
    "up_proj": ("up_proj", "w3"),
    "down_proj": ("down_proj", "w2"),
}
"""{parameter of fused experts: names of the layers that it is made of, in order}."""


def decompressed(directory: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """{name: tensor} of a directory, those of weights unpacked.

    Raises:
        UserError: If no scheme, or more than one, names a packed layer.
    """
    from safetensors.torch import load_file

    schemes = schemes_of(directory)
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    for layer in packed_layers(tensors):
        own = {name: tensors.pop(name) for name in parts_of_layer(layer) if name in tensors}
        tensors[f"{layer}.weight"] = unpacked(layer, own, schemes, dtype)
    return tensors


def decompressed_in_turn(directory: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a directory, those of weights unpacked; one is in memory at a time.

    Raises:
        UserError: If no scheme, or more than one, names a packed layer.
    """
    schemes, files = schemes_of(directory), tensors_in(directory)
    taken: set[str] = set()
    for layer in packed_layers(files):
        parts = [name for name in parts_of_layer(layer) if name in files]
        own = {name: read_tensor(directory / files[name], name) for name in parts}
        taken |= own.keys()
        yield f"{layer}.weight", unpacked(layer, own, schemes, dtype)
    for name in [each for each in files if each not in taken]:
        yield name, read_tensor(directory / files[name], name)


def packed_layers(names: Iterable[str]) -> list[str]:
    """The layers that have scales."""
    return [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]


def parts_of_layer(layer: str) -> list[str]:
    """Names of all that may stand for a layer's weight, and of the scale of its inputs."""
    return [f"{layer}.weight", *(f"{layer}.weight_{part}" for part in _PARTS), f"{layer}.input_global_scale"]


def schemes_of(directory: Path) -> list[Any]:
    """The groups of the configuration in a directory."""
    from compressed_tensors.quantization import QuantizationConfig

    values = read_model_json(directory)["quantization_config"]
    return list(QuantizationConfig.model_validate(values).config_groups.values())


def unpacked(layer: str, parts: Mapping[str, Tensor], schemes: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """A layer's weight, by the scheme that names it.

    Raises:
        UserError: If none does, or more than one.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.utils.match import match_name

    named = [each for each in schemes if any(match_name(layer, target) for target in each.targets)]
    if len(named) != 1:
        raise UserError(f"{len(named)} schemes name {layer}, which is packed")
    given = {name.removeprefix(f"{layer}."): _widened(tensor, dtype) for name, tensor in parts.items()}
    compressor = BaseCompressor.get_value_from_registry(named[0].format)
    weight: Tensor = compressor.decompress(given, named[0])["weight"]
    return weight.to(dtype)


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
