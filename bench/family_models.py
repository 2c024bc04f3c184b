"""Small random models of many families of transformers, made from their configuration classes alone, and inputs.

Every number of a configuration that has to do with size is made small by its name, whatever the family; a family's own
settings say the rest. Weights are scaled so that outputs spread, biases and norms are shaken, so that a file in which
one of them is wrong gives other outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

WIDTH, FEED_FORWARD, HEADS, LAYERS, VOCABULARY, POSITIONS, IMAGE = 64, 96, 4, 2, 160, 64, 32

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "embed_dim"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "model_dim", "input_embedding_size"), WIDTH),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"),
        FEED_FORWARD,
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"),
        HEADS,
    ),
    **dict.fromkeys(("head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim", "kv_channels"), WIDTH // HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), POSITIONS),
    **dict.fromkeys(("context_length", "sliding_window", "attention_window_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_chunk_size", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    "vocab_size": VOCABULARY,
    "image_size": IMAGE,
    "patch_size": 8,
    "num_channels": 3,
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 1),
    "eos_token_id": 2,
    "pad_token_id": 0,
    **dict.fromkeys(("mask_token_id", "sep_token_id", "cls_token_id"), 3),
}  # fmt: skip
"""Small values of settings, by their names."""

Kind = Literal["tokens", "pairs", "images", "sound"]


@dataclass(frozen=True)
class Family:
    """A recipe.

    Attributes:
        architecture: Class in transformers.
        settings: Of its configuration, beyond `SIZES`; a dict belongs to the configuration inside of that name.
        kind: Inputs: token ids; ids for an encoder and a decoder; images; waveforms.
        shape: Of a sample of images or sound, where it is not the usual one.
        factory: Whether a function makes the model, as it must where its class has no kind of its own.
    """

    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "tokens"
    shape: tuple[int, ...] = ()
    factory: bool = False


def small_config(kind: Any, settings: Mapping[str, Any]) -> Any:
    """A configuration of class `kind` with small sizes and these settings."""
    if kind.__name__ == "AutoConfig":  # any kind may be inside
        from transformers import CONFIG_MAPPING

        settings = dict(settings)
        kind = CONFIG_MAPPING[settings.pop("model_type")]
    names = {name for each in kind.__mro__ for name in getattr(each, "__annotations__", {})}
    values = {name: value for name, value in SIZES.items() if name in names}
    inner = getattr(kind, "sub_configs", {}) or {}
    for name, own in settings.items():
        values[name] = small_config(inner[name], own) if name in inner and isinstance(own, dict) else own
    return kind(**values)


def make_model(family: Family) -> nn.Module:
    """The model, always the same."""
    import transformers

    made = getattr(transformers, family.architecture)
    torch.manual_seed(0)
    model = made(small_config(made.config_class, family.settings))
    model.config.architectures = [family.architecture]
    _shake(model)
    return model.eval()


@torch.no_grad()
def _shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2 or name.endswith(("bias", "A_log", "inv_freq")):
            parameter.add_(0.1 * noise)
        elif id(parameter) in embeddings:
            parameter.copy_(0.5 * noise)
        else:
            fan_in = parameter.shape[-1] if parameter.ndim < 4 else parameter[0].numel()
            parameter.copy_(noise * max(fan_in, 8) ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.mul_(torch.rand(buffer.shape, generator=generator) + 0.5)


def make_inputs(family: Family, count: int, length: int) -> dict[str, Tensor]:
    """Inputs of `count` samples, of `length` tokens where they are tokens."""
    generator = torch.Generator().manual_seed(2)
    if family.kind in ("images", "sound"):
        usual = (3, IMAGE, IMAGE) if family.kind == "images" else (800,)
        return {"input": torch.randn(count, *(family.shape or usual), generator=generator)}
    ids_NT = torch.randint(5, VOCABULARY, (count, length), generator=generator)
    if family.kind == "tokens":
        return {"input_ids": ids_NT}
    return {
        "input_ids": ids_NT,
        "decoder_input_ids": torch.randint(5, VOCABULARY, (count, length // 2), generator=generator),
    }
