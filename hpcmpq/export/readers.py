"""What reads each export back: its users' own library, on one sample, in full precision, on the device of the run."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.errors import NotReproduced, UserError, in_words
from hpcmpq.export.decompressed import load_decompressed
from hpcmpq.export.gguf_reader import load_gguf
from hpcmpq.export.mlx_reader import run_mlx
from hpcmpq.export.verification import Behaviour, full_precision
from hpcmpq.export.weight_probes import probed
from hpcmpq.models.description import describe_model
from hpcmpq.models.factories import describe
from hpcmpq.models.load import forward, load_model, model_class, pick_device, quiet_transformers
from hpcmpq.models.outputs import Inputs
from hpcmpq.models.searchable_layers import plain_experts
from hpcmpq.settings import Config

Reader = Callable[[Config, tuple[str, ...], Path], nn.Module]
"""(config, import paths of factories, directory) → model."""

PACKAGES = {
    "fake_quantized": ("transformers",),
    "compressed_tensors": ("transformers", "compressed-tensors"),
    "decompressed": ("compressed-tensors", "transformers"),
    "gguf": ("transformers", "gguf"),
    "gguf_tensors": ("gguf", "transformers"),
    "onnx": ("onnxruntime",),
    "mlx": ("mlx-lm", "mlx"),
}
"""What reads each export; the first is named."""


def missing_reader(name: str) -> str | None:
    """Why an export cannot be read back here, or None."""
    for package in PACKAGES[name]:
        try:
            version(package)
        except PackageNotFoundError:
            extra = "mlx" if name == "mlx" else "export"
            return f"{package} is not installed; pip install 'hpcmpq[{extra}]'"
    return None


def reader_name(name: str) -> str:
    """What reads an export, with its version."""
    package = PACKAGES[name][0]
    return f"{package} {version(package)}"


def read_back(
    name: str,
    config: Config,
    import_paths: tuple[str, ...],
    directory: Path,
    inputs: Inputs,
    layers: Sequence[str],
) -> Behaviour:
    """What an export does as its reader runs it, and what its weights make of probes where that is a model of torch.

    Args:
        name: Of the reader, which is that of the export or another that it asks for.
        config: Of the run.
        import_paths: Where factories are.
        directory: What was exported.
        inputs: Of a sample.
        layers: Names of linear layers that were searched.

    Raises:
        NotReproduced: If the reader cannot load or run it.
        UserError: If there is not enough memory for it.
    """
    try:
        # Progress bars of three libraries; what fails is raised.
        with torch.no_grad(), quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            if name == "onnx":
                return Behaviour(_run_onnx(directory, inputs), {})
            if name == "mlx":
                return Behaviour(*run_mlx(directory, inputs, layers))
            device = pick_device(config.model.device)
            model = _READERS[name](config, import_paths, directory).eval().to(device)
            if (
                config.model.dtype == "float64"
            ):  # as `load_model` does: grouped products have no kernel for it
                plain_experts(model)
            outputs_NTV = forward(model, {key: value.to(device) for key, value in inputs.items()})
            return Behaviour(outputs_NTV.cpu(), probed(model, layers))
    except Exception as error:  # another library's, on files that may be wrong in any way
        if isinstance(in_words(error), UserError):
            raise UserError(
                f"{in_words(error)}; --no-verify writes the export without reading it back"
            ) from error
        raise NotReproduced(
            f"{reader_name(name)} cannot read the {name} export back ({describe(error)}); nothing of it is kept: take "
            "another format, or keep it unverified with `hpcmpq export --no-verify`"
        ) from error


def _by_transformers(config: Config, import_paths: tuple[str, ...], directory: Path) -> Any:
    if config.model.path is None:
        from safetensors.torch import load_model as load_weights

        model = load_model(config.model, import_paths=import_paths)
        load_weights(model, directory / "model.safetensors")
        return model.to(_dtype(config))
    description = dataclasses.replace(describe_model(config.model), path=directory)
    model = model_class(description).from_pretrained(
        directory, dtype=_dtype(config), local_files_only=True, trust_remote_code=False
    )
    _leave_blocks_of_inputs(model)
    # It decompresses in a hook of the first pass, and fp4 to bfloat16, which holds it, whatever dtype says.
    model.register_forward_pre_hook(lambda module, args: module.to(_dtype(config)) and None)
    return model


def _decompressed(config: Config, import_paths: tuple[str, ...], directory: Path) -> Any:
    return load_decompressed(describe_model(config.model).architecture, directory, _dtype(config))


def _leave_blocks_of_inputs(model: Any) -> None:
    """Let layers whose inputs are rounded in blocks run with weights alone: kernels round scales up, it to nearest."""
    for module in model.modules():
        inputs = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
        if inputs is not None and inputs.group_size is not None:
            module.quantization_enabled = False


def _gguf(config: Config, import_paths: tuple[str, ...], directory: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory,
        gguf_file="model.gguf",
        dtype=_dtype(config),
        local_files_only=True,
        trust_remote_code=False,
    )


def _gguf_tensors(config: Config, import_paths: tuple[str, ...], directory: Path) -> Any:
    description = describe_model(config.model)
    return load_gguf(
        description.architecture, Path(str(description.path)), directory / "model.gguf", _dtype(config)
    )


def _run_onnx(directory: Path, inputs: Inputs) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    [logits_NTV] = session.run(None, {"input_ids": inputs["input_ids"].cpu().numpy()})
    return torch.from_numpy(logits_NTV)


def _dtype(config: Config) -> torch.dtype:
    return full_precision(getattr(torch, config.model.dtype))


_READERS: dict[str, Reader] = {
    "fake_quantized": _by_transformers,
    "compressed_tensors": _by_transformers,
    "decompressed": _decompressed,
    "gguf": _gguf,
    "gguf_tensors": _gguf_tensors,
}
