"""Tensors of a GGUF file by the names and in the order of transformers: gguf decodes them, transformers names them.

transformers' own reader knows two architectures with experts, and not how wide they are, and passes over factors of
rotary frequencies. Its operations on tensors are those that it has for these, taken for all; the model comes from the
original's config, its frequencies from the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcmpq.models.gguf_source import FACTORS, frequencies, stored_factors
from hpcmpq.targets.llama_cpp import GGUF_ARCHITECTURES

_EXPERTS = "_exps.weight"
_FUSES_EXPERTS = "qwen2moe"


def load_gguf(architecture: str, original: Path, path: Path, dtype: torch.dtype) -> nn.Module:
    """The model of a file, of which nothing but the tensors and the base of frequencies is read.

    Args:
        architecture: Its class in transformers.
        original: Directory of the original, for its config.
        path: The file.
        dtype: Of the model.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(original, local_files_only=True, trust_remote_code=False)
    made = getattr(transformers, architecture)
    with torch.device("meta"):
        bare = made(config)
    tensors = {name: tensor.to(dtype) for name, tensor in dequantized_in_turn(bare, path)}
    model: nn.Module = made.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, trust_remote_code=False
    )
    _set_frequencies(model, path)
    return model


def _set_frequencies(model: nn.Module, path: Path) -> None:
    """Divide a model's rotary frequencies by the factors of a file that has some, as llama.cpp does."""
    import gguf

    reader = gguf.GGUFReader(path)
    factors_F = stored_factors(reader)
    if factors_F is not None:
        base = float(reader.get_field("llama.rope.freq_base").contents())
        frequency_F = frequencies(base, len(factors_F)) / factors_F
        rotation = model.get_submodule("model.rotary_emb")
        rotation.inv_freq.copy_(torch.from_numpy(frequency_F))  # type: ignore[operator, union-attr]


def dequantized_in_turn(model: nn.Module, path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a file in float32, read without mapping it; experts when all of their layer's are there.

    Args:
        model: Whose weights they are; it needs no values.
        path: The file.
    """
    import gguf
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    settings: Mapping[str, Any] = model.config.to_dict()  # type: ignore[operator, union-attr]
    architecture = GGUF_ARCHITECTURES[settings["model_type"]]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=settings)
    fusing = TENSOR_PROCESSORS[_FUSES_EXPERTS](config=settings)
    names = _names(model, architecture)
    fused: dict[str, Tensor] = {}
    halves: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == FACTORS:
            continue
        data = tensor.data
        own = np.fromfile(path, data.dtype, data.size, offset=tensor.data_offset).reshape(data.shape)
        weight = gguf.dequantize(own, tensor.tensor_type)
        if tensor.name.endswith(_EXPERTS):
            target = names[tensor.name.removesuffix(".weight")]
            fusing.process(
                weight, tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": fused}
            )
            halves[target] = halves.get(target, 0) + 1
            if halves[target] == (2 if target.endswith("gate_up_proj") else 1):
                yield target, fused.pop(target)
            continue
        reading = fusing if "shexp" in tensor.name else processor
        weight = reading.process(
            weights=weight, name=tensor.name, tensor_key_mapping=names, parsed_parameters={}
        ).weights
        yield names[tensor.name], torch.from_numpy(np.ascontiguousarray(weight))


def _names(model: nn.Module, architecture: str) -> dict[str, str]:
    """{name in the file: the model's}."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, get_gguf_hf_weights_map

    names: dict[str, str] = get_gguf_hf_weights_map(
        model, TENSOR_PROCESSORS[_FUSES_EXPERTS](config={}), model_type=architecture
    )
    for name in model.state_dict():
        if name.endswith(".mlp.gate.e_score_correction_bias"):
            names[f"blk.{name.split('.')[2]}.exp_probs_b.bias"] = name
    return names
