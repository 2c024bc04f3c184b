"""An MLX directory as mlx-lm runs it and MLX dequantizes it, in float32."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmpq.export.weight_probes import Rows, probes
from hpcmpq.models.description import read_model_json
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.stored_weights import tensors_in
from hpcmpq.models.tensor_files import read_tensor


def run_mlx(directory: Path, inputs: Inputs, layers: Sequence[str]) -> tuple[Tensor, Rows]:
    """Logits [N, T, V], and what every layer's rows make of the probes of `weight_probes`.

    Args:
        directory: What was exported.
        inputs: With `input_ids` [N, T].
        layers: Names of linear layers.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    model.set_dtype(mx.float32)
    logits_NTV = model(mx.array(inputs["input_ids"].cpu().numpy()))
    modules = dict(model.named_modules())
    rows = {}
    for name in layers:
        x_PK = probes(columns(modules[name])).T.numpy()
        rows[f"layer {name}"] = _tensor(modules[name](mx.array(x_PK))).T
    return _tensor(logits_NTV), rows


def dequantized_in_turn(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a directory, those of weights dequantized by MLX to float32; one is in memory at a time."""
    import mlx.core as mx

    settings, files = read_model_json(directory).get("quantization", {}), tensors_in(directory)

    def read(name: str) -> Tensor:
        return read_tensor(directory / files[name], name)

    def array(name: str) -> mx.array:
        tensor = read(name)
        return mx.array((tensor.float() if tensor.is_floating_point() else tensor).numpy())

    for name in files:
        layer, _, part = name.rpartition(".")
        packed = f"{layer}.scales" in files
        if packed and part == "weight":
            biases = array(f"{layer}.biases") if f"{layer}.biases" in files else None
            found = mx.dequantize(
                array(name), array(f"{layer}.scales"), biases, **settings[layer], dtype=mx.float32
            )
            yield name, _tensor(found)
        elif not packed or part == "bias":
            yield name, read(name)


def columns(layer: object) -> int:
    """Inputs of a linear layer, quantized or not."""
    width: int = layer.weight.shape[-1]  # type: ignore[attr-defined]
    return width * 32 // getattr(layer, "bits", 32)


def _tensor(array: object) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))
