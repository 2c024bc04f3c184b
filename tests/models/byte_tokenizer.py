"""A tokenizer whose tokens are bytes, and which puts tokens of its own around a text."""

from collections.abc import Sequence
from pathlib import Path

VOCAB = 260
BOS, EOS = 256, 257


def save_byte_tokenizer(path: Path, start: Sequence[str] = ("<s>",), end: Sequence[str] = ()) -> None:
    """Write it into a model's directory; `start` and `end` are of ``<s>`` and ``</s>``, tokens 256 and 257."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate([*letters, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if start or end:
        used = [(word, vocab[word]) for word in {*start, *end}]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*start, "$A", *end], pair=[*start, "$A", "$B:1", *end], special_tokens=used
        )
    path.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>").save_pretrained(path)
