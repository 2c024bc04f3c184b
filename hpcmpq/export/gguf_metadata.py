"""What a GGUF file says of a model besides its tensors.

Source: `set_gguf_parameters` of the classes in llama.cpp's `conversion/`. Keys and values of DeepSeek are one tensor,
`attn_kv_b`, which llama.cpp takes where the file names no lengths of compressed attention: in the newer form keys lie
along another axis than that which they are rounded along.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcmpq.models.gguf_config import context_length, rotation
from hpcmpq.models.gguf_source import llama3_factors

SOFTMAX, SIGMOID = 1, 2
"""`ExpertGatingFuncType` of the package gguf: what makes weights of the scores of experts."""


def metadata(architecture: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name of `GGUFWriter`'s method after ``add_``, value) of what llama.cpp needs to know of a model."""
    heads = values["num_attention_heads"]
    head_dim = _head_dim(values)
    latent = architecture == "deepseek2"
    if latent:
        head_dim = values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    found = [
        ("context_length", context_length(values)),
        ("embedding_length", values["hidden_size"]),
        ("block_count", values["num_hidden_layers"]),
        ("feed_forward_length", values["intermediate_size"]),
        ("head_count", heads),
        ("head_count_kv", heads if latent else values.get("num_key_value_heads") or heads),
        ("key_length", head_dim),
        ("value_length", values["v_head_dim"] if latent else head_dim),
        ("layer_norm_rms_eps", values["rms_norm_eps"]),
        ("rope_freq_base", rotation(values)["rope_theta"]),
        ("vocab_size", values["vocab_size"]),
    ]
    if architecture == "llama":
        found.append(("rope_dimension_count", head_dim))
    if latent:
        found += _latent(values)
    return found + _experts(values)


def frequency_factors(values: Mapping[str, Any]) -> np.ndarray | None:
    """What llama.cpp divides rotary frequencies by, float32 [head_dim / 2]; None where they are not scaled.

    Source: `generate_extra_tensors` of `LlamaModel` in llama.cpp's `convert_hf_to_gguf.py`.
    """
    rope = rotation(values)
    if rope["rope_type"] != "llama3":
        return None
    factors_F = llama3_factors(
        rope["rope_theta"],
        _head_dim(values) // 2,
        float(rope["factor"]),
        float(rope["low_freq_factor"]),
        float(rope["high_freq_factor"]),
        int(rope["original_max_position_embeddings"]),
    )
    return factors_F.astype(np.float32)


def _head_dim(values: Mapping[str, Any]) -> int:
    return int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])


def _latent(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Of attention whose keys and values are compressed, and of what is beside experts in such models."""
    sigmoid = values["model_type"] == "deepseek_v3"
    found = [
        ("rope_dimension_count", values["qk_rope_head_dim"]),
        ("kv_lora_rank", values["kv_lora_rank"]),
        ("leading_dense_block_count", values["first_k_dense_replace"]),
        ("expert_shared_count", values["n_shared_experts"]),
        ("expert_weights_scale", float(values["routed_scaling_factor"])),
        ("expert_weights_norm", sigmoid and bool(values["norm_topk_prob"])),
        ("expert_gating_func", _gating(SIGMOID if sigmoid else SOFTMAX)),
    ]
    if values["q_lora_rank"] is not None:
        found.append(("q_lora_rank", values["q_lora_rank"]))
    if sigmoid and values["n_group"] > 1:
        found += [
            ("expert_group_count", values["n_group"]),
            ("expert_group_used_count", values["topk_group"]),
        ]
    return found


def _gating(number: int) -> Any:
    import gguf

    return gguf.ExpertGatingFuncType(number)


def _experts(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = {
        "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
        "expert_used_count": ("num_experts_per_tok",),
        "expert_feed_forward_length": ("moe_intermediate_size",),
        "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    }
    there = {key: next((values[own] for own in given if own in values), None) for key, given in names.items()}
    return [(key, value) for key, value in there.items() if value is not None]
