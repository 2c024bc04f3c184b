"""The task of a model, told by the class that saved it: its name, and what transformers loads such classes for."""

from typing import Any, Literal

Kind = Literal[
    "causal_lm",
    "masked_lm",
    "sequence_classifier",
    "token_classifier",
    "image_classifier",
    "audio_classifier",
    "ctc",
    "encoder",
    "factory",
]

AUTO_CLASSES: dict[Kind, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence_classifier": "AutoModelForSequenceClassification",
    "token_classifier": "AutoModelForTokenClassification",
    "image_classifier": "AutoModelForImageClassification",
    "audio_classifier": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
    "encoder": "AutoModel",
}
"""The transformers class that loads each kind of model."""

ENDS: tuple[tuple[str, Kind], ...] = (
    ("ForCausalLM", "causal_lm"),
    ("LMHeadModel", "causal_lm"),
    ("ForMaskedLM", "masked_lm"),
    ("ForSequenceClassification", "sequence_classifier"),
    ("ForTokenClassification", "token_classifier"),
    ("ForImageClassification", "image_classifier"),
    ("ForImageClassificationWithTeacher", "image_classifier"),
    ("ForAudioClassification", "audio_classifier"),
    ("ForCTC", "ctc"),
    ("Model", "encoder"),
    ("Encoder", "encoder"),
)
"""Ends of architecture names and what they mean; the first that fits counts."""

_TASKS: dict[Kind, str] = {
    "causal_lm": "CAUSAL_LM",
    "masked_lm": "MASKED_LM",
    "sequence_classifier": "SEQUENCE_CLASSIFICATION",
    "token_classifier": "TOKEN_CLASSIFICATION",
    "image_classifier": "IMAGE_CLASSIFICATION",
    "audio_classifier": "AUDIO_CLASSIFICATION",
    "ctc": "CTC",
}
"""What transformers calls the task of each kind, in the names of its tables of classes."""

_GENERATOR = "ForConditionalGeneration"

_OTHER_PARTS = ("vision_config", "audio_config", "encoder_config")
"""Configurations of what sees images or hears beside a language model."""


def kind_of(architecture: str, values: dict[str, Any]) -> Kind | None:
    """The kind of model, or None where it has no single tensor of outputs to compare.

    Args:
        architecture: The class that saved the weights.
        values: Of its `config.json`.

    Example:
        >>> kind_of("BertGenerationDecoder", {}), kind_of("BertForQuestionAnswering", {})
        ('causal_lm', None)
    """
    by_name = next((kind for end, kind in ENDS if architecture.endswith(end)), None)
    if loads_as_saved(by_name, architecture):
        return by_name or ("causal_lm" if _reads_text_alone(values) else None)
    loaded = _loaded_as(architecture)
    return by_name if by_name in loaded or not loaded else loaded[0]


def loads_as_saved(kind: Kind | None, architecture: str) -> bool:
    """Whether to load by the class that saved the weights: `AutoModel` would add a decoder to the encoder of T5."""
    return kind == "encoder" or architecture.endswith(_GENERATOR)


def _loaded_as(architecture: str) -> list[Kind]:
    """The kinds of model for which transformers loads a class; none of one that it does not have."""
    from transformers.models.auto import modeling_auto

    found: list[Kind] = []
    for kind, task in _TASKS.items():
        for names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values():
            if architecture in ([names] if isinstance(names, str) else names) and kind not in found:
                found.append(kind)
    return found


def _reads_text_alone(values: dict[str, Any]) -> bool:
    """Whether a model of text and images or sound is a causal language model where it is given text alone."""
    beside = any(name in values for name in _OTHER_PARTS)
    return beside and not values.get("is_encoder_decoder") and isinstance(values.get("text_config"), dict)
