"""Which values of a `config.json` mlx-lm reads, and takes for granted, in the models that the export knows.

Source: `mlx_lm/models/llama.py` (also of Mistral), `qwen2.py`, `qwen3.py` and `rope_utils.py` of mlx-lm 0.32.2.
"""

from collections.abc import Mapping
from typing import Any

from hpcmpq.errors import UserError

READ = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "attention_bias", "mlp_bias",
)  # fmt: skip
"""Keys that it reads; where they are missing its defaults are not always those of transformers."""

FIXED: Mapping[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish")}
"""Keys that it does not read, with the values that it takes for granted."""

FIXED_OF: Mapping[str, Mapping[str, tuple[Any, ...]]] = {"qwen3": {"attention_bias": (False, None)}}
"""The same of one `model_type`."""

ROTATIONS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def check_mlx_config(values: Mapping[str, Any]) -> None:
    """Raise `UserError` if mlx-lm computes something else than a resolved config says.

    A sliding window is none of these: up to its length it has no effect.
    """
    kind = values["model_type"]
    for key, held in {**FIXED, **FIXED_OF.get(kind, {})}.items():
        if values.get(key, held[0]) not in held:
            raise UserError(
                f"config.json says {key}: {values[key]!r}, and mlx-lm takes {held[0]!r} for granted in {kind}; "
                f"{_INSTEAD}"
            )
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    if kind == "qwen2" and values.get("head_dim") not in (None, head_dim):
        raise UserError(
            f"config.json says head_dim: {values['head_dim']}, and mlx-lm takes hidden_size / num_attention_heads = "
            f"{head_dim} for granted in {kind}; {_INSTEAD}"
        )
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rotation = rope.get("rope_type", rope.get("type", "default"))
    if rotation not in ROTATIONS or rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UserError(
            f"mlx-lm does not know rotary positions of type {rotation!r} as config.json has them; {_INSTEAD}"
        )


_INSTEAD = "take target: transformers"
