"""What a GGUF file says of a model that transformers' reader passes over: other parts, scaled rotations, odd tensors.

That reader takes one file and the keys and tensors that it knows, and makes up what it does not find. llama.cpp
computes with all of them, so whatever cannot be carried into a `config.json` is refused here.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hpcmpq.errors import UserError

LLAMA3_LENGTHS = tuple(2**power for power in range(10, 18))
"""Context lengths that rotations in the manner of Llama 3 may start from; the released models have 8,192."""

LLAMA3_FREQUENCIES = (1.0, 4.0)
"""Their `low_freq_factor` and `high_freq_factor`, which `convert_hf_to_gguf.py` takes for granted too."""

LLAMA3_MODELS = ("llama", "mistral")
"""`model_type` of models of which llama.cpp reads factors of rotary frequencies, and that have such settings."""

FACTORS = "rope_freqs.weight"
"""Tensor of what llama.cpp divides the frequencies of an architecture `llama` by."""

FACTORS_AGREE = 1e-4
"""Relative difference of frequencies that float32 explains: the smooth part of the formula cancels some bits."""

SCALABLE = ("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""`model_type` of models whose rotations have one set of settings, which may be linear ones."""

SHAPES = (
    "attention.key_length", "attention.value_length", "expert_feed_forward_length",
    "expert_shared_feed_forward_length", "expert_shared_count",
)  # fmt: skip
"""Keys that say what the tensors' shapes say too, which are compared."""

_ROTATIONS = ("rope.scaling.", "rope.scale_linear")
_WITHOUT_EFFECT = ("attn_rot_embd", "rope_freqs")
_INSTEAD = "give the original model as a Hugging Face directory"


def open_whole(path: Path) -> Any:
    """The package gguf's reader of a file that holds a whole model.

    Raises:
        UserError: If it is one of several parts, or gguf is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("a GGUF file needs the package gguf; pip install 'hpcmpq[export]'") from None
    reader = gguf.GGUFReader(path)
    parts = _value(reader, "split.count")
    if parts is not None and parts > 1:
        raise UserError(
            f"{path} is one of {parts} parts of a model; merge them first, with llama.cpp's "
            "`llama-gguf-split --merge FIRST_PART merged.gguf`, and set model.path to merged.gguf"
        )
    return reader


def carry_rotations(reader: Any, config: Any, path: Path) -> None:
    """Write what a file says of scaled rotary positions into transformers' config of it.

    Args:
        reader: Of the file.
        config: As transformers made it, with the base of rotations alone.
        path: The file, for messages.

    Raises:
        UserError: If they are scaled in a way that the config would not say exactly.
    """
    name = _value(reader, "general.architecture")
    prefix = f"{name}.rope.scaling."
    settings = {
        key.removeprefix(prefix): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(prefix)
    }
    kind, factor = settings.get("type", "linear"), settings.get("factor", 0.0)
    factor = float(factor or _value(reader, f"{name}.rope.scale_linear") or 1.0)
    found: list[dict[str, Any]] = []
    if kind not in ("none", "linear") or settings.get("attn_factor", 1.0) != 1.0:
        raise UserError(f"{path} scales rotary positions by {kind}, which is not carried over; {_INSTEAD}")
    if kind == "linear" and factor != 1.0:
        found.append({"rope_type": "linear", "factor": factor})
    if (scaling := _factors(reader, config, path)) is not None:
        found.append(scaling)
    if not found:
        return
    if len(found) > 1 or config.model_type not in SCALABLE:
        raise UserError(
            f"{path} scales the rotary positions of a {config.model_type}{' twice' * (len(found) > 1)}, which is not "
            f"carried over; {_INSTEAD}"
        )
    before = getattr(config, "rope_parameters", None)
    if before is None:  # transformers 4
        config.rope_scaling = found[0]
    else:
        config.rope_parameters = {**before, **found[0]}


def unread_keys(reader: Any) -> list[str]:
    """Settings of the architecture in a file that neither transformers nor `carry_rotations` makes anything of."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    name = str(_value(reader, "general.architecture"))
    read = {key.replace("_", ""): names for key, names in GGUF_CONFIG_MAPPING.items()}
    names = read.get(name.replace("_", "").replace("-", ""))
    if names is None:  # newer architectures have functions of their own, which read what there is
        return []
    own = [key.removeprefix(f"{name}.") for key in reader.fields if key.startswith(f"{name}.")]
    return sorted(
        key for key in own if key not in names and key not in SHAPES and not key.startswith(_ROTATIONS)
    )


def check_all_taken(reader: Any, model: nn.Module, unexpected: Iterable[str], path: Path) -> None:
    """Refuse a file of which some tensor went nowhere.

    Args:
        reader: Of the file.
        model: As transformers made it of the file.
        unexpected: Names that transformers gave to tensors of which the model has none.
        path: The file, for messages.

    Raises:
        UserError: Naming the first such tensor, or the first half of fused experts that is not there.
    """
    own = {tensor.name for tensor in reader.tensors}
    left = set(unexpected)
    if not getattr(getattr(model, "hf_quantizer", None), "supported", False):
        known = _known(model, str(_value(reader, "general.architecture")))
        left |= {name for name in own if name not in known and name.rpartition(".")[0] not in known}
        halves = (name for name in known if name.endswith("_exps") and f"{name}.weight" not in own)
        if (missing := next(halves, None)) is not None:
            raise UserError(f"{path} has no {missing}; copy it again")
    odd = sorted(name for name in left if not any(part in name for part in _WITHOUT_EFFECT))
    if odd:
        raise UserError(
            f"{path} holds {len(odd)} tensors that transformers has no place for in a {model.config.model_type}, "  # type: ignore[union-attr]
            f"first {odd[0]}; {_INSTEAD}"
        )


def _known(model: nn.Module, architecture: str) -> Mapping[str, str]:
    """{tensor of a file, experts without their ending: the model's}, as transformers' reader has it."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    names: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    return names


def _factors(reader: Any, config: Any, path: Path) -> dict[str, Any] | None:
    """The settings of Llama 3 that give the factors of frequencies in a file; None where there are none, or all are 1.

    Source: `generate_extra_tensors` of `LlamaModel` in llama.cpp's `convert_hf_to_gguf.py`.
    """
    stored_F = stored_factors(reader)
    if stored_F is None or (stored_F == 1.0).all():
        return None
    factor = float(stored_F.max())
    settings: Mapping[str, Any] = getattr(config, "rope_parameters", None) or vars(config)  # transformers 4
    base = float(settings["rope_theta"])
    low, high = LLAMA3_FREQUENCIES
    for length in LLAMA3_LENGTHS if config.model_type in LLAMA3_MODELS else ():
        wanted_F = llama3_factors(base, len(stored_F), factor, low, high, length)
        if np.allclose(stored_F, wanted_F, rtol=FACTORS_AGREE, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    raise UserError(f"{path} has factors of rotary frequencies that are not those of Llama 3; {_INSTEAD}")


def stored_factors(reader: Any) -> np.ndarray | None:
    """What a file divides its rotary frequencies by, float64 [F]; None where it says nothing of that."""
    tensor = next((t for t in reader.tensors if t.name == FACTORS), None)
    return None if tensor is None else np.array(tensor.data, np.float64).reshape(-1)


def frequencies(base: float, count: int) -> np.ndarray:
    """Rotary frequencies that nothing scales, float64 [F].

    Example:
        >>> frequencies(10000.0, 2).tolist()
        [1.0, 0.01]
    """
    return base ** (-np.arange(count) / count)


def llama3_factors(
    base: float, num_frequencies: int, factor: float, low: float, high: float, length: int
) -> np.ndarray:
    """What frequencies are divided by in Llama 3.1, float64 [num_frequencies].

    Example:
        >>> llama3_factors(500000.0, 4, 8.0, 1.0, 4.0, 8192).round(3)
        array([1.   , 1.   , 2.695, 8.   ])
    """
    turns_F = length * frequencies(base, num_frequencies) / (2 * math.pi)
    smooth_F = np.clip((turns_F - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth_F) / factor + smooth_F)


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
