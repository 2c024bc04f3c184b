"""In which form the weights of a Hugging Face directory are quantized, if they are."""

import json
from pathlib import Path
from typing import Any

from hpcmpq.errors import UserError

DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""`quant_method` in `config.json`: the settings of transformers that dequantize it when loading."""

SETTINGS = ("quantization_config", "compression_config")
"""Keys of `config.json` that say how weights are quantized."""

SIDECARS = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")
"""Files that say so beside it."""

_CODES = ("I8", "U8", "I16", "U16", "I32", "U32", "F8_E4M3", "F8_E5M2", "F4", "F8_E8M0")


def form_of(path: Path) -> str | None:
    """The form of a directory's quantized weights; None where they are plain, or where there is no model to look at.

    Raises:
        UserError: If it is none of `DEQUANTIZED`.
    """
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    method = _method(values, path) if isinstance(values, dict) else None
    codes = None if method in DEQUANTIZED else _coded_tensor(path)
    if method in DEQUANTIZED or (method is None and codes is None):
        return method
    how = (
        f"its config says {method}"
        if method
        else f"{codes} holds codes, and config.json does not say of what form"
    )
    raise UserError(
        f"the weights in {path} are quantized already ({how}), and only GGUF, {' and '.join(DEQUANTIZED)} are "
        "dequantized when loading; give the original model, or load it dequantized in a function and use model.factory"
    )


def _method(values: dict[str, Any], path: Path) -> str | None:
    if (settings := settings_of(values)) is not None:
        return str(settings.get("quant_method") or "an unnamed method")
    return next((name for name in SIDECARS if (path / name).is_file()), None)


def settings_of(values: dict[str, Any]) -> dict[str, Any] | None:
    """What a `config.json` says of quantization, of the whole model or of its text's."""
    places = (values, *(value for value in values.values() if isinstance(value, dict)))
    found = (place.get(key) for place in places for key in SETTINGS)
    return next((settings for settings in found if isinstance(settings, dict)), None)


def _coded_tensor(path: Path) -> str | None:
    """The first weight that is stored as codes: integers, or fp8 beside scales."""
    kinds: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            kinds.update({name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"})
        except (OSError, ValueError, OverflowError, MemoryError, RecursionError):
            continue  # damaged, or a link to what is not there: loading says so
        except (AttributeError, KeyError, TypeError):
            continue  # JSON, and no header
    scaled = {name.rpartition(".")[0] for name in kinds if "scale" in name.rpartition(".")[2]}
    for name, kind in kinds.items():
        parent, _, last = name.rpartition(".")
        is_weight = "weight" in last or last.endswith(("_blocks", "_proj"))
        if kind in _CODES and is_weight and "scale" not in last and (kind[0] != "F" or parent in scaled):
            return name
    return None
