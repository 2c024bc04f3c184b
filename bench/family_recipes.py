"""The families of the sweep: the class in transformers of each, and what its configuration needs beyond small sizes."""

from typing import Any

from bench.family_models import FEED_FORWARD, HEADS, LAYERS, WIDTH, Family

_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16}
_FULL = {"num_key_value_heads": HEADS}
_STAGES = {"hidden_sizes": [32, 64], "depths": [1, 1], "num_attention_heads": [2, 4]}
_SOUND = {
    "conv_dim": [32, 32], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
}  # fmt: skip
_WHISPER = {
    "num_mel_bins": 16,
    "max_source_positions": 20,
    "max_target_positions": 16,
    "classifier_proj_size": 32,
}
_SEEN = {"intermediate_size": FEED_FORWARD, "num_attention_heads": HEADS}


def _alike(end: str, **settings: dict[str, Any]) -> dict[str, Family]:
    """Families called after their classes, which end alike but where `of` names another."""
    return {
        name: Family(own.get("of", f"{name}{end}"), {key: value for key, value in own.items() if key != "of"})
        for name, own in settings.items()
    }


DECODERS = _alike(
    "ForCausalLM",
    Llama={}, Mistral={}, Qwen2={}, Qwen3={}, Gemma={}, Gemma2={}, Gemma3={}, Granite={}, Cohere={}, Cohere2={},
    Phi={"partial_rotary_factor": 0.5}, Phi3={}, StableLm={}, Olmo2={}, Glm4={}, Persimmon={}, Nemotron={},
    SmolLM3={}, Apertus={}, NanoChat={}, BitNet={}, DiffLlama={}, MiniCPM3=_FULL, GPTNeoX={}, GPTJ={},
    GPTNeo={"attention_types": [[["global", "local"], 1]]}, CodeGen={}, GPTBigCode={}, Bloom={}, OPT={},
    Mpt={}, Falcon={}, XGLM={"attention_heads": HEADS}, BioGpt={},
    GPT2={"of": "GPT2LMHeadModel"}, OpenAIGPT={"of": "OpenAIGPTLMHeadModel"},
    CTRL={"of": "CTRLLMHeadModel", "dff": 96}, XLNet={"of": "XLNetLMHeadModel", "d_inner": 96},
)  # fmt: skip

EXPERTS = _alike(
    "ForCausalLM",
    Mixtral={}, Qwen2Moe={}, Qwen3Moe={"norm_topk_prob": True}, Olmoe=_FULL, GptOss={}, Phimoe={},
    GraniteMoe={}, JetMoe={},
    DeepseekV2={"first_k_dense_replace": 1, **_FULL},
    DeepseekV3={"first_k_dense_replace": 1, **_FULL}, Ernie4_5_Moe={}, HunYuanMoEV1={},
    LongcatFlash={"zero_expert_num": 2, **_FULL, "head_dim": 8},
    Llama4={"moe_layers": [1], "intermediate_size_mlp": FEED_FORWARD, "attention_chunk_size": 16},
    Dbrx={
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": FEED_FORWARD, "moe_num_experts": 4, "moe_top_k": 2},
    },
)  # fmt: skip

HYBRIDS = _alike(
    "ForCausalLM",
    Mamba={"hidden_size": WIDTH}, Mamba2={"num_heads": 8, "head_dim": 16, "n_groups": 1}, FalconMamba={},
    Jamba={"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    Bamba={"attn_layer_indices": [1], **_MAMBA}, FalconH1={"mamba_d_ssm": 128, **_MAMBA},
    Zamba2={"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "use_mamba_kernels": False, **_FULL},
    RecurrentGemma={"block_types": ["recurrent", "attention"]}, Rwkv={"attention_hidden_size": WIDTH},
    Lfm2={"layer_types": ["conv", "full_attention"], "block_multiple_of": 32},
    Qwen3Next=_HYBRID, MiniMax={**_HYBRID, "block_size": 8},
    GraniteMoeHybrid={"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64, **_MAMBA},
    KimiLinear={**_HYBRID, **_FULL, "mlp_layer_types": ["dense", "sparse"]},
    NemotronH={
        "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1,
    },
)  # fmt: skip

ENCODERS = {
    **_alike(
        "ForMaskedLM",
        Bert={}, Roberta={}, Albert={}, DistilBert={}, MPNet={}, ModernBert={}, FNet={}, SqueezeBert={},
        DebertaV2={"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
        ConvBert={}, Nystromformer={"num_landmarks": 4, "segment_means_seq_len": 4, "conv_kernel_size": 5},
        MobileBert={"embedding_size": 32, "intra_bottleneck_size": 32}, Longformer={"attention_window": 8},
        Funnel={"block_sizes": [1, 1], "d_head": 16, "d_inner": 96}, RoFormer={}, Esm={},
    ),
    "T5 encoder": Family("T5EncoderModel"),
    "Bert encoder": Family("BertModel"),
    "Qwen3 encoder": Family("Qwen3Model"),
    "Llama classifier": Family("LlamaForSequenceClassification"),
    "GPT2 classifier": Family("GPT2ForSequenceClassification"),
    "DebertaV2 tokens": Family("DebertaV2ForTokenClassification"),
    "Canine": Family("CanineForSequenceClassification", {"num_hash_buckets": 64, "local_transformer_stride": 4}),
}  # fmt: skip

PAIRS = {
    name: Family(architecture, settings, "pairs", factory=True)
    for name, architecture, settings in (
        ("T5", "T5ForConditionalGeneration", {}),
        ("Bart", "BartForConditionalGeneration", {}),
        ("Marian", "MarianMTModel", {}),
        ("Pegasus", "PegasusForConditionalGeneration", {}),
        ("LED", "LEDForConditionalGeneration", {"attention_window": 8, "max_encoder_position_embeddings": 64}),
        ("SwitchTransformers", "SwitchTransformersForConditionalGeneration", {"num_sparse_encoder_layers": 1}),
        ("ProphetNet", "ProphetNetForConditionalGeneration",
         {"num_encoder_attention_heads": HEADS, "num_decoder_attention_heads": HEADS}),
        ("T5Gemma", "T5GemmaForConditionalGeneration", {"encoder": {}, "decoder": {}}),
    )
}  # fmt: skip

IMAGES = {
    name: Family(f"{name}ForImageClassification", settings, "images")
    for name, settings in {
        "ViT": {}, "Beit": {}, "Dinov2": {},
        "Swin": {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 4},
        "ConvNext": {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
        "ResNet": {"hidden_sizes": [32, 64], "depths": [1, 1], "embedding_size": 32},
        "RegNet": {"hidden_sizes": [32, 64], "depths": [1, 1], "embedding_size": 32, "groups_width": 16},
        "MobileNetV2": {"depth_multiplier": 0.35},
        "EfficientNet": {
            "width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640, "kernel_sizes": [3], "strides": [2],
            "in_channels": [32], "out_channels": [32], "num_block_repeats": [1], "expand_ratios": [2],
        },
        "PoolFormer": {
            "hidden_sizes": [32, 64], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3],
            "strides": [4, 2], "padding": [2, 1],
        },
        "Cvt": {"embed_dim": [32, 64, 64], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
        "Segformer": {
            **_STAGES, "num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2],
            "mlp_ratios": [2, 2],
        },
        "Pvt": {
            **_STAGES, "num_encoder_blocks": 2, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2],
            "strides": [4, 2], "mlp_ratios": [2, 2],
        },
        "FocalNet": {
            "embed_dim": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "focal_levels": [1, 1],
            "focal_windows": [3, 3], "patch_size": 4,
        },
        "MobileViT": {"hidden_sizes": [32, 32, 32], "neck_hidden_sizes": [16, 16, 32, 32, 32, 32, 64], "patch_size": 2},
    }.items()
}  # fmt: skip

SOUND = {
    "Wav2Vec2": Family("Wav2Vec2Model", _SOUND, "sound"),
    "Wav2Vec2 classifier": Family("Wav2Vec2ForSequenceClassification", _SOUND, "sound"),
    "Wav2Vec2 letters": Family("Wav2Vec2ForCTC", {**_SOUND, "do_stable_layer_norm": True}, "sound"),
    "Hubert": Family("HubertForCTC", _SOUND, "sound"),
    "WavLM": Family(
        "WavLMForSequenceClassification", {**_SOUND, "num_buckets": 16, "max_bucket_distance": 32}, "sound"
    ),
    "Data2VecAudio": Family("Data2VecAudioModel", _SOUND, "sound"),
    "AST": Family(
        "ASTForAudioClassification",
        {"num_mel_bins": 32, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        "sound",
        (32, 32),
    ),
    "Whisper classifier": Family("WhisperForAudioClassification", _WHISPER, "sound", (16, 40)),
    "Wav2Vec2Bert": Family("Wav2Vec2BertModel", {"feature_projection_input_dim": 32}, "sound", (20, 32)),
}

TEXT_OF_OTHERS = {
    "Llava": Family(
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama"},
            "vision_config": _SEEN | {"model_type": "clip_vision_model"},
            "image_token_index": 159,
        },
    ),
    "Gemma3 with images": Family(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {},
            "vision_config": _SEEN | {"model_type": "siglip_vision_model"},
            "image_token_index": 159,
            "mm_tokens_per_image": 4,
        },
    ),
    "Qwen2VL": Family("Qwen2VLForConditionalGeneration", {"text_config": {}, "vision_config": {"depth": 1}}),
}

FAMILIES: dict[str, Family] = {
    **SOUND, **HYBRIDS, **EXPERTS, **PAIRS, **IMAGES, **ENCODERS, **TEXT_OF_OTHERS, **DECODERS,
}  # fmt: skip

assert LAYERS == 2, "settings above count on two layers"
