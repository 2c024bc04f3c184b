"""Tiny random models; nothing is ever fetched."""

from collections.abc import Callable

import transformers
from torch import nn

VOCAB = 256


def llama() -> nn.Module:
    """Byte vocabulary, two blocks of seven linear layers, untied head."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    """Conv1D layers, whose weights are transposed, and a head tied to the embedding."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def _bert_config() -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip


def bert() -> nn.Module:
    """A plain encoder, with a pooler that its last hidden state does not depend on."""
    return transformers.BertModel(_bert_config())


def bert_masked() -> nn.Module:
    """A masked language model."""
    return transformers.BertForMaskedLM(_bert_config())


def bert_classifier() -> nn.Module:
    """A sequence classifier of three classes."""
    return transformers.BertForSequenceClassification(_bert_config())


def vit() -> nn.Module:
    """An image classifier of four classes, 16 × 16 pixels."""
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16,
            patch_size=8, num_labels=4,
        )
    )  # fmt: skip


def cnn() -> nn.Module:
    """Two convolutions, one of them grouped, and a linear head: [N, 1, 8, 8] to [N, 5]."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 9, 5),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make for make in (llama, gpt2, bert, bert_masked, bert_classifier, vit, cnn)
}
