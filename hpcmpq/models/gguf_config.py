"""Which values of a `config.json` a GGUF file can say: an allow-list, by architecture.

llama.cpp computes what the name of an architecture and a few numbers say, whatever the original's config says besides,
and transformers' reader of GGUF sets what it does not find to its class's defaults. So every key of the config is
either written into the file, without effect on outputs, fixed to the values that both readers take for granted, or at
its class's default; anything else is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmpq.errors import UserError
from hpcmpq.models.description import read_model_json
from hpcmpq.models.factories import describe
from hpcmpq.models.gguf_source import LLAMA3_MODELS
from hpcmpq.models.mlx_config import check_mlx_config
from hpcmpq.targets import Target, check_model

WRITTEN = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
    "rope_theta", "tie_word_embeddings", "sliding_window", "model_type",
    "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
    "moe_intermediate_size", "shared_expert_intermediate_size", "first_k_dense_replace", "routed_scaling_factor",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "v_head_dim",
)  # fmt: skip
"""Keys whose values are in the file, as metadata, as its context length, or as which tensors it has."""

NEUTRAL = (
    "transformers_version", "architectures", "output_hidden_states", "output_attentions", "return_dict", "dtype",
    "torch_dtype", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "initializer_range", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "pretraining_tp", "attention_dropout", "_name_or_path",
    "max_window_layers", "use_sliding_window", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise",
    "num_mtp_layers",
)  # fmt: skip
"""Keys without effect on the logits of a text, or of which `sliding_window` and `layer_types` hold the effect."""

FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "is_causal": (True, None),
    "is_encoder_decoder": (False,),
}
"""Keys that the file cannot say, with the values that its readers take for granted."""

FIXED_OF: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "qwen2_moe": {"norm_topk_prob": (False,), "mlp_only_layers": ([], None), "decoder_sparse_step": (1,)},
    "qwen3_moe": {"norm_topk_prob": (True,), "mlp_only_layers": ([], None), "decoder_sparse_step": (1,)},
    "olmoe": {"norm_topk_prob": (False,), "clip_qkv": (None,)},
    "deepseek_v2": {"topk_method": ("greedy",)},
    "deepseek_v3": {"rope_interleave": (True,)},
}
"""The same of one `model_type`: what its architecture computes in llama.cpp's `src/models`."""

WRITTEN_OF: Mapping[str, tuple[str, ...]] = {
    "deepseek_v2": (
        "norm_topk_prob",
        "n_group",
        "topk_group",
    ),  # without effect where experts are chosen greedily
    "deepseek_v3": ("norm_topk_prob", "n_group", "topk_group"),
}
"""Further keys that are written, or without effect, of one `model_type`."""

READ_BY_MODELS = ("head_dim", "is_causal")
"""Keys that models read though their config class does not declare them; other such keys have no effect."""


def check_describable(target: Target, path: Path) -> None:
    """Raise `UserError` if a target's file cannot describe the model in a directory."""
    check_model(target, read_model_json(path))
    if target.export == "gguf":
        check_gguf_config(resolved_config(path))
    if target.export == "mlx":
        check_mlx_config(resolved_config(path).to_dict())


def resolved_config(path: Path) -> Any:
    """transformers' config of a directory, with its class's defaults where `config.json` says nothing.

    Raises:
        UserError: If there is none, or transformers refuses it.
    """
    read_model_json(path)
    import transformers

    from hpcmpq.models.load import quiet_transformers

    with quiet_transformers():
        try:
            return transformers.AutoConfig.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers' own checks of values, which differ by class
            raise UserError(f"cannot read {path}/config.json: {describe(error)}; correct it") from error


def check_gguf_config(config: Any) -> None:
    """Raise `UserError` if a GGUF file cannot say what a resolved config says.

    Args:
        config: Of a model whose `model_type` the export knows.
    """
    values, defaults = config.to_dict(), type(config)().to_dict()
    names: list[str] = config.architectures or []
    if not all(name.endswith("ForCausalLM") for name in names):
        raise UserError(f"the gguf export takes language models with a head, not {names[0]}; {_INSTEAD}")
    fixed = {**FIXED, **FIXED_OF.get(config.model_type, {})}
    known = (*WRITTEN, *NEUTRAL, *fixed, *_CHECKED, *WRITTEN_OF.get(config.model_type, ()))
    for key, value in values.items():
        if key in fixed and value not in fixed[key]:
            raise UserError(
                f"config.json says {key}: {value!r}, and readers of a GGUF file of {config.model_type} take "
                f"{fixed[key][0]!r} for granted; {_INSTEAD}"
            )
        declared = key in defaults or key in READ_BY_MODELS
        if declared and key not in known and value != defaults.get(key):
            raise UserError(f"the gguf export does not know what {key}: {value!r} changes; {_INSTEAD}")
    _check_positions(values)
    if config.model_type == "olmoe" and values["num_key_value_heads"] != values["num_attention_heads"]:
        raise UserError(
            f"config.json says num_key_value_heads: {values['num_key_value_heads']}, and llama.cpp takes as many heads "
            f"of keys as of queries in an OLMoE, {values['num_attention_heads']}; {_INSTEAD}"
        )
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    if config.model_type in ("qwen2", "qwen2_moe") and values.get("head_dim", head_dim) not in (
        None,
        head_dim,
    ):
        raise UserError(
            f"config.json says head_dim: {values['head_dim']}, and readers of a GGUF file of {config.model_type} take "
            f"hidden_size / num_attention_heads = {head_dim}; {_INSTEAD}"
        )


def context_length(values: Mapping[str, Any]) -> int:
    """Tokens up to which the file's model, which looks at all of them, is the original, which may have a window."""
    window = values.get("sliding_window")
    kinds = values.get("layer_types") or ["sliding_attention"]
    windowed = window is not None and "sliding_attention" in kinds
    length = values["max_position_embeddings"]
    return int(min(length, window) if windowed else length)


def rotation(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of rotary positions, with `rope_type` and `rope_theta`, wherever transformers 4 or 5 keeps them."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    return {
        **given,
        "rope_type": given.get("rope_type", given.get("type", "default")),
        "rope_theta": float(given.get("rope_theta") or values.get("rope_theta") or 10000.0),
    }


_CHECKED = ("layer_types",)
_INSTEAD = "use target: transformers or vllm, or export tool_configs, which has a list for llama-quantize"


def _check_positions(values: Mapping[str, Any]) -> None:
    rope = rotation(values)
    kind = rope["rope_type"]
    if kind != "default" and not (kind == "llama3" and values["model_type"] in LLAMA3_MODELS):
        raise UserError(f"the gguf export does not know rotary positions of type {kind!r}; {_INSTEAD}")
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UserError(
            f"config.json says partial_rotary_factor: {rope['partial_rotary_factor']}, and readers of a GGUF file "
            f"rotate whole heads; {_INSTEAD}"
        )
    if other := set(values.get("layer_types") or ()) - {"full_attention", "sliding_attention"}:
        raise UserError(f"the gguf export does not know layers of {min(other)}; {_INSTEAD}")
