"""Trained models from a Hugging Face directory or a factory, ready to measure: eval mode, no gradients."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from hpcmpq.errors import UserError, in_words
from hpcmpq.models.description import ModelDescription, describe_model
from hpcmpq.models.factories import call_factory, describe, resolve_factory
from hpcmpq.models.finite import check_finite_parameter
from hpcmpq.models.kinds import AUTO_CLASSES, Kind
from hpcmpq.models.outputs import forward
from hpcmpq.models.searchable_layers import plain_experts
from hpcmpq.models.weight_digests import weights_fingerprint
from hpcmpq.settings import ModelConfig

__all__ = [
    "forward",
    "load_model",
    "pick_device",
    "quiet_transformers",
    "resolve_factory",
    "weights_fingerprint",
]

LACKS_FILES = "check that config.json belongs to them and that no file is missing"
"""What to do where weights are missing from a directory."""


def load_model(
    config: ModelConfig, *, attention: str | None = None, import_paths: Sequence[str] = ()
) -> nn.Module:
    """The model in eval mode, without gradients, in the configured dtype on the configured device.

    Nothing is fetched: a Hugging Face directory is read as it is.

    Args:
        config: Directory or factory, dtype and device.
        attention: ``eager`` for attention and experts with forward-mode derivatives; None for the model's default.
        import_paths: Directories that factories may be imported from.

    Raises:
        UserError: If the model is missing or damaged, or a parameter holds NaN or infinite values.
    """
    device = pick_device(config.device)
    description = describe_model(config)
    dtype = getattr(torch, config.dtype)
    if description.path is None:
        model = _from_factory(str(config.factory), attention, import_paths).to(dtype)
    else:
        # transformers keeps what must stay exact, such as rotary frequencies, in float32.
        model = _from_directory(description, dtype, attention)
    if attention == "eager" or dtype == torch.float64:  # for which grouped products have no kernel
        plain_experts(model)
    model = model.to(device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        check_finite_parameter(name, parameter, config.path or config.factory)
    return model


def pick_device(name: str) -> torch.device:
    """The device called `name`; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"model.device {name!r} cannot be used here ({describe(error)}); try auto or cpu"
        ) from None
    if device.type == "meta":
        raise UserError("model.device 'meta' holds no values; try auto or cpu")
    return device


def model_class(description: ModelDescription) -> Any:
    """The transformers class that loads a directory.

    Of some kinds it is the one that saved it, where there is one, and so it is where transformers picks no class by
    such a configuration (the text part of a Mllama).
    """
    import transformers

    auto = getattr(transformers, AUTO_CLASSES[description.kind])
    own = getattr(transformers, description.architecture, None)
    if own is None:
        return auto
    picked = getattr(own, "config_class", None) in auto._model_mapping
    return auto if picked and not description.loads_as_saved else own


def own_code(path: Path | None, error: Exception) -> str | None:
    """What to say where transformers would run code that lies in the directory, which it is never asked to."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        f"{path} brings its own code, which is not run; read it, and load the model with model.factory: a function "
        "of yours that returns from_pretrained(..., trust_remote_code=True), with data as token ids"
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No network, progress bars, advice or warnings from transformers, and what it imports, inside."""
    if (
        "huggingface_hub" not in sys.modules
    ):  # else it has looked, and the caller may want the network elsewhere
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    from transformers.utils import logging as transformers_logging

    progress_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if progress_bar:
            transformers_logging.enable_progress_bar()


def _from_directory(description: ModelDescription, dtype: torch.dtype, attention: str | None) -> nn.Module:
    path, options = description.path, {} if attention is None else {"attn_implementation": attention}
    with quiet_transformers():
        try:
            model, info = model_class(description).from_pretrained(
                path,
                dtype=dtype,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to say which below, where transformers would only log them
                trust_remote_code=False,
                **options,
            )
        except Exception as error:
            if isinstance(in_words(error), UserError):
                raise in_words(error) from error
            raise UserError(
                own_code(path, error)
                or f"cannot load the model in {path}: {describe(error)}; check its files or copy it again"
            ) from error
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"the weights in {path} hold {name} as {list(stored)}, and config.json makes it {list(wanted)}; "
            "check that it belongs to these weights"
        )
    check_none_missing(path, info["missing_keys"], LACKS_FILES, description.kind)
    return model


def check_none_missing(
    path: Path | None, missing: Iterable[str], advice: str, kind: Kind = "causal_lm"
) -> None:
    """Raise `UserError` with some advice if transformers found no values for a parameter, and so made some up.

    An encoder's pooler is often not saved, and plays no part in the last hidden state.
    """
    lost = sorted(name for name in missing if not (kind == "encoder" and "pooler" in name.split(".")))
    if lost:
        raise UserError(f"the weights in {path} lack {len(lost)} parameters, first {lost[0]}; {advice}")


def _from_factory(name: str, attention: str | None, import_paths: Sequence[str]) -> nn.Module:
    model = call_factory(name, import_paths)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the factory {name!r} returned {type(model).__name__}; it must return a torch.nn.Module"
        )
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):  # of torch.compile
        raise UserError(f"the factory {name!r} returned a compiled module; return the one it was made from")
    lazy = [key for key, value in model.named_parameters() if isinstance(value, UninitializedParameter)]
    if lazy:
        raise UserError(
            f"the factory {name!r} returned a model whose {lazy[0]} has no shape yet; run it once on a batch before "
            "it loads the weights"
        )
    set_attention = getattr(model, "set_attn_implementation", None)
    if attention is not None and callable(set_attention):
        set_attention(attention)
    return model
