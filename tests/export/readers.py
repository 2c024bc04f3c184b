"""What reads each export back: a directory to a model with logits, by a library that others deploy with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcmpq.models.load import quiet_transformers

NEEDED = {"mlx": ("mlx_lm", "needs mlx-lm[cpu], whose wheels want glibc 2.35")}
"""{export: the module that reads it back, and why it may be missing}; what reads the others comes with the tests."""


def skip_without_reader(export: str) -> None:
    """Skip the calling test where nothing here reads an export back."""
    if export in NEEDED:
        module, reason = NEEDED[export]
        pytest.importorskip(module, reason=reason)


Logits = Callable[[Tensor], Tensor]


def transformers_model(directory: Path) -> Logits:
    """transformers, with compressed-tensors where `config.json` asks for it."""
    import transformers

    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return lambda tokens_NT: model(tokens_NT).logits


def gguf_by_transformers(directory: Path) -> Logits:
    """transformers' own reader of GGUF, which dequantizes with the package gguf."""
    import transformers

    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, gguf_file="model.gguf", dtype=torch.float32
        )
    return lambda tokens_NT: model(tokens_NT).logits


def onnx_runtime(directory: Path) -> Logits:
    """ONNX Runtime's CPU kernels."""
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda tokens_NT: torch.from_numpy(session.run(None, {"input_ids": tokens_NT.numpy()})[0])


def mlx(directory: Path) -> Logits:
    """mlx-lm on the CPU, all that is floating in float32."""
    import mlx.core as core
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    model.set_dtype(core.float32)
    return lambda tokens_NT: torch.from_numpy(np.array(model(core.array(tokens_NT.numpy())), np.float32))


READERS: dict[str, Callable[[Path], Logits]] = {
    "fake_quantized": transformers_model,
    "compressed_tensors": transformers_model,
    "gguf": gguf_by_transformers,
    "onnx": onnx_runtime,
    "mlx": mlx,
}
