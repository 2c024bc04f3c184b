"""A compressed checkpoint that transformers cannot load packed: compressed-tensors unpacks, transformers puts together.

transformers reads the experts of all layers of a checkpoint in one format, vLLM those of each layer in its own, and
packed zero points it rejects. So tensors are unpacked here one by one, by the library whose layout it is and the scheme
that names them, and transformers loads what comes out as it loads the original.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import UserError
from hpcmpq.models.description import read_model_json

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
    settings = config.quantization_config
    del config.quantization_config
    tensors = decompressed(directory, settings, dtype)
    made = getattr(transformers, architecture)
    model: nn.Module = made.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, trust_remote_code=False
    )
    return model


def decompressed(directory: Path, settings: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """{name: tensor} of a directory, those of weights unpacked.

    Raises:
        UserError: If no scheme, or more than one, names a packed layer.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name
    from safetensors.torch import load_file

    values = settings if isinstance(settings, dict) else read_model_json(directory)["quantization_config"]
    schemes = list(QuantizationConfig.model_validate(values).config_groups.values())
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    for layer in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        named = [each for each in schemes if any(match_name(layer, target) for target in each.targets)]
        if len(named) != 1:
            raise UserError(f"{len(named)} schemes of {directory} name {layer}, which is packed")
        own = {"weight": tensors.pop(f"{layer}.weight", None)}
        own |= {f"weight_{part}": tensors.pop(f"{layer}.weight_{part}", None) for part in _PARTS}
        given = {name: _widened(tensor, dtype) for name, tensor in own.items() if tensor is not None}
        compressor = BaseCompressor.get_value_from_registry(named[0].format)
        tensors[f"{layer}.weight"] = compressor.decompress(given, named[0])["weight"].to(dtype)
    return tensors


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
