"""What llama.cpp calls formats and models."""

GGML_TYPES = {
    **{f"q{bits}_k": f"Q{bits}_K" for bits in range(2, 7)},
    "iq4_xs": "IQ4_XS",
    "iq4_nl": "IQ4_NL",
    "q4_1": "Q4_1",
    "q5_1": "Q5_1",
}

GGUF_TYPES = {
    "int4": "Q4_0",
    "int5": "Q5_0",
    "int8": "Q8_0",
    **GGML_TYPES,
    "bf16": "BF16",
}
"""Types of llama.cpp (ggml-common.h); Q4_0, Q5_0 and Q8_0 have the grid of symmetric integers in groups of 32."""

VOCABULARY = "vocab.gguf"
"""The vocabulary for llama.cpp in a model's directory, which an export takes along."""

GGUF_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
"""`model_type` of transformers: llama.cpp's name of the architecture."""
