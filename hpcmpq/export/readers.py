"""What reads each export back: its users' own library, on one sample, in the dtype and on the device of the run."""

import contextlib
import dataclasses
import io
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpcmpq.errors import NotReproduced, UserError, in_words
from hpcmpq.models.description import describe_model
from hpcmpq.models.factories import describe
from hpcmpq.models.load import forward, load_model, model_class, pick_device, quiet_transformers
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.searchable_layers import plain_experts
from hpcmpq.settings import Config

Reader = Callable[[Config, tuple[str, ...], Path, Inputs], Tensor]
"""(config, import paths of factories, directory, inputs) → outputs [N, T, V]."""

PACKAGES = {
    "fake_quantized": ("transformers",),
    "compressed_tensors": ("transformers", "compressed-tensors"),
    "gguf": ("transformers", "gguf"),
    "onnx": ("onnxruntime",),
}
"""What reads each export; the first is named."""


def missing_reader(name: str) -> str | None:
    """Why an export cannot be read back here, or None."""
    for package in PACKAGES[name]:
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed; pip install 'hpcmpq[export]'"
    return None


def reader_name(name: str) -> str:
    """What reads an export, with its version."""
    package = PACKAGES[name][0]
    return f"{package} {version(package)}"


def read_outputs(
    name: str, config: Config, import_paths: tuple[str, ...], directory: Path, inputs: Inputs
) -> Tensor:
    """Outputs [N, T, V] of an export as its reader gives them, on the CPU.

    Raises:
        NotReproduced: If the reader cannot load or run it.
        UserError: If there is not enough memory for it.
    """
    reader: Reader = _READERS[name]
    try:
        # Progress bars of three libraries; what fails is raised.
        with torch.no_grad(), quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            return reader(config, import_paths, directory, inputs).cpu()
    except Exception as error:  # another library's, on files that may be wrong in any way
        if isinstance(in_words(error), UserError):
            raise UserError(
                f"{in_words(error)}; --no-verify writes the export without reading it back"
            ) from error
        raise NotReproduced(
            f"{reader_name(name)} cannot read the {name} export back ({describe(error)}); nothing of it is kept: take "
            "another format, or keep it unverified with `hpcmpq export --no-verify`"
        ) from error


def _run(model: Any, config: Config, inputs: Inputs) -> Tensor:
    device = pick_device(config.model.device)
    if config.model.dtype == "float64":  # as `load_model` does: grouped products have no kernel for it
        plain_experts(model)
    return forward(model.eval().to(device), {name: value.to(device) for name, value in inputs.items()})


def _by_transformers(
    config: Config, import_paths: tuple[str, ...], directory: Path, inputs: Inputs
) -> Tensor:
    if config.model.path is None:
        from safetensors.torch import load_model as load_weights

        model = load_model(config.model, import_paths=import_paths)
        load_weights(model, directory / "model.safetensors")
        return _run(model, config, inputs)
    description = dataclasses.replace(describe_model(config.model), path=directory)
    dtype = getattr(torch, config.model.dtype)
    model = model_class(description).from_pretrained(
        directory, dtype=dtype, local_files_only=True, trust_remote_code=False
    )
    return _run(model, config, inputs)


def _gguf(config: Config, import_paths: tuple[str, ...], directory: Path, inputs: Inputs) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        directory,
        gguf_file="model.gguf",
        dtype=getattr(torch, config.model.dtype),
        local_files_only=True,
        trust_remote_code=False,
    )
    return _run(model, config, inputs)


def _onnx(config: Config, import_paths: tuple[str, ...], directory: Path, inputs: Inputs) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    [logits_NTV] = session.run(None, {"input_ids": inputs["input_ids"].cpu().numpy()})
    return torch.from_numpy(logits_NTV)


_READERS: dict[str, Reader] = {
    "fake_quantized": _by_transformers,
    "compressed_tensors": _by_transformers,
    "gguf": _gguf,
    "onnx": _onnx,
}
