"""Exporters that write something else than the run's model: the real ones, and then a change to one of their files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from hpcmpq.export import compressed_tensors, fake_quantized, gguf, mlx, tool_configs
from hpcmpq.export import onnx as onnx_export

FACTOR = 1.05


def _safetensors(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"] *= FACTOR
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _gguf(directory: Path) -> None:
    from gguf import GGUFReader

    [found] = [
        t for t in GGUFReader(directory / "model.gguf", "r+").tensors if t.name == "blk.1.ffn_norm.weight"
    ]
    found.data[:] = (found.data.astype(np.float32) * FACTOR).astype(found.data.dtype)


def _onnx(directory: Path) -> None:
    import onnx

    graph = onnx.load(directory / "model.onnx")
    [scales] = [t for t in graph.graph.initializer if t.name == "model.layers.1.mlp.down_proj.weight.scales"]
    scales.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scales) * FACTOR, scales.name))
    onnx.save(graph, directory / "model.onnx")


def _tool_configs(directory: Path) -> None:
    layers = json.loads((directory / "auto_round.json").read_text())
    layers["model.layers.1.mlp.down_proj"]["bits"] = 5
    (directory / "auto_round.json").write_text(json.dumps(layers))


def _then(export: Callable, change: Callable[[Path], None]) -> Callable:
    def tampered(plan, variants, assignment, directory):
        written = export(plan, variants, assignment, directory)
        change(directory)
        return written

    return tampered


TAMPERED = {
    "fake_quantized": _then(fake_quantized.export, _safetensors),
    "compressed_tensors": _then(compressed_tensors.export, _safetensors),
    "gguf": _then(gguf.export, _gguf),
    "mlx": _then(mlx.export, _safetensors),
    "onnx": _then(onnx_export.export, _onnx),
    "tool_configs": _then(tool_configs.export, _tool_configs),
}
globals().update({f"tampered_{name}": function for name, function in TAMPERED.items()})
