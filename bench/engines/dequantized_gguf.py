"""A GGUF file again with every tensor in float32, whose weights come from the run's fake-quantized checkpoint.

What llama.cpp computes from it shows the model that a file describes without the kernels that round inputs of
quantized products to 8 bits. Rows of queries and keys are turned as llama.cpp's own convert_hf_to_gguf.py turns them.
"""

import logging
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

from hpcmpq.models.description import read_model_json


def write_dequantized(exported: Path, checkpoint: Path, output: Path, vocabulary: bool = True) -> None:
    """Write a file with the keys of another and the weights of a Hugging Face directory of a Llama.

    Args:
        exported: A GGUF file of the same model.
        checkpoint: The directory; one file of weights.
        output: What is written.
        vocabulary: Whether with the other's, if it has one; otherwise the file takes token ids.
    """
    reader = gguf.GGUFReader(exported)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(output, reader.fields["general.architecture"].contents())
    left_out = ("GGUF.",) if vocabulary else ("GGUF.", "tokenizer.")
    if not vocabulary:
        writer.add_tokenizer_model("none")
    for name, field in reader.fields.items():
        if not name.startswith(left_out) and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    config = read_model_json(checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    written = {tensor.name for tensor in reader.tensors}
    with safe_open(checkpoint / "model.safetensors", "pt") as file:
        for name in list(file.keys()):
            place = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if place in written:
                writer.add_tensor(place, turned(name, file.get_tensor(name).float().numpy(), config))
                written.remove(place)
    if written:
        raise ValueError(f"{checkpoint} lacks {', '.join(sorted(written))}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def turned(name: str, weight: np.ndarray, config: dict) -> np.ndarray:
    """`LlamaModel.permute` of convert_hf_to_gguf.py: halves of a head's rows become neighbours."""
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"],
    }.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
