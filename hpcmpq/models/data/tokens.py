"""Sources as samples: tokenized, cut into windows, labelled, and checked against the model."""

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.data.chats import Chat, written_out
from hpcmpq.models.data.named_arrays import check_names
from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.models.data.sources import Batch, Documents, Source
from hpcmpq.models.data.tokenization import Frame, Tokenization, plain_tokens
from hpcmpq.models.data.windows import cut
from hpcmpq.models.description import ModelDescription

_PER_POSITION = ("masked_lm", "token_classifier", "ctc", "encoder")
"""Kinds with an output per position, of which padding must not count."""


def to_samples(
    source: Source,
    place: str,
    description: ModelDescription,
    sequence_length: int,
    tokenization: Tokenization,
) -> Samples:
    """All samples that a source holds.

    Args:
        source: Documents, a stream of tokens [L], an array of samples [N, ...], or batches.
        place: The setting and its value, for messages.
        description: The model's kind, vocabulary and limits.
        sequence_length: T of windows cut from text or a stream, with the special tokens around them.
        tokenization: See `find_tokenization`.

    Raises:
        UserError: If the source does not fit the model.
    """
    if isinstance(source, Documents):
        samples = _from_documents(source, place, description, sequence_length, tokenization)
    elif isinstance(source, Tensor):
        samples = _from_array(source, place, description, sequence_length, tokenization.frame)
    else:
        samples = _from_batches(source, place, description)
    _check_tokens(samples, place, description)
    _check_classes(samples, place, description)
    return samples


def _from_documents(
    source: Documents,
    place: str,
    description: ModelDescription,
    sequence_length: int,
    tokenization: Tokenization,
) -> Samples:
    if not description.takes_tokens:
        raise UserError(
            f"{place} is text, which this model does not read; give .npy or .npz arrays or a factory of batches"
        )
    if description.kind == "causal_lm":
        tokens_L = _stream(source, tokenization)
        return cut(tokens_L, sequence_length, tokenization.frame, place, "text")
    texts = source.texts
    if len(texts) == 1 and isinstance(texts[0], str) and source.labels is None:
        texts = tuple(line for line in texts[0].split("\n") if line.strip())
    padded = _padded(texts, tokenization, sequence_length, description.pad_token_id)
    if source.labels is not None and description.kind == "sequence_classifier":
        targets_N = torch.tensor([_class_number(label, description, place) for label in source.labels])
        padded = Samples(padded.inputs, targets_N, labelled=True)
    return _labelled(padded, description, shifted=True, place=place)


def _class_number(label: int | str, description: ModelDescription, place: str) -> int:
    """Of a label by number or by a name in the model's `config.json`."""
    if isinstance(label, int):
        return label
    if label not in description.classes:
        raise UserError(
            f"{place} has the label {label!r}, and id2label in {description.path}/config.json names only "
            f"{', '.join(description.classes[:20])}; correct either, or give class numbers"
        )
    return description.classes.index(label)


def _stream(source: Documents, tokenization: Tokenization) -> Tensor:
    """All documents in a row, with the end-of-text token (a line break for bytes) between them.

    Without what a chat template writes at the start of a conversation if every window begins with it; nor does anything
    follow a conversation that holds the end-of-text token itself.
    """
    tokenizer, start = tokenization.tokenizer, list(tokenization.frame.start)
    texts = written_out(source.texts, tokenizer)
    if tokenizer is None:
        return torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8).to(torch.int64)
    eos = tokenizer.eos_token_id
    ids: list[int] = []
    between: list[int] = []
    for text, given in zip(texts, source.texts, strict=True):
        own = plain_tokens(tokenizer, text)
        is_chat = isinstance(given, Chat)
        ids += between + (own[len(start) :] if is_chat and own[: len(start)] == start else own)
        between = [] if eos is None or (is_chat and eos in own) else [eos]
    return torch.tensor(ids, dtype=torch.int64)


def _padded(
    texts: tuple[str | Chat, ...], tokenization: Tokenization, sequence_length: int, pad_token_id: int | None
) -> Samples:
    """One sample per text, truncated to the sequence length and padded to the longest.

    With the model's own padding token, if it has one: decoders classify at the last token that is another.
    """
    tokenizer = tokenization.tokenizer
    texts_N = written_out(texts, tokenizer)
    pads: tuple[int | None, ...] = (pad_token_id,)
    if tokenizer is None:
        rows = [list(text.encode())[:sequence_length] for text in texts_N]
    else:
        framed = len(tokenization.frame) > 0
        rows = [
            tokenizer(
                text,
                add_special_tokens=framed
                and not isinstance(given, Chat),  # whose template writes them itself
                truncation=True,
                max_length=sequence_length,
                verbose=False,
            )["input_ids"]
            for text, given in zip(texts_N, texts, strict=True)
        ]
        pads = (pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((token for token in pads if token is not None), 0)
    longest = max(len(row) for row in rows)
    ids_NT = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask_NT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return Samples({"input_ids": ids_NT, "attention_mask": mask_NT})


def _from_array(
    array: Tensor, place: str, description: ModelDescription, sequence_length: int, frame: Frame
) -> Samples:
    if not description.takes_tokens:
        return Samples({description.main_input: array})
    if array.is_floating_point():
        raise UserError(f"{place} holds {array.dtype} values; this model takes integer token ids")
    if array.ndim == 1:
        samples = cut(array, sequence_length, frame, place, "tokens")
        return samples if description.kind == "causal_lm" else Samples(samples.inputs)
    if array.ndim != 2:
        raise UserError(
            f"{place} has shape {list(array.shape)}; token ids must be [tokens] or [samples, tokens]"
        )
    return _labelled(Samples({"input_ids": array}), description, shifted=True, place=place)


def _from_batches(batches: list[Batch], place: str, description: ModelDescription) -> Samples:
    keys = set(batches[0].inputs)
    if any(
        set(batch.inputs) != keys or (batch.targets is None) != (batches[0].targets is None)
        for batch in batches
    ):
        raise UserError(f"{place} yields batches with different tensors; every batch must have the same")
    try:
        inputs = {
            description.main_input if key is None else key: torch.cat(
                [batch.inputs[key] for batch in batches]
            )
            for key in batches[0].inputs
        }
        targets = [batch.targets for batch in batches if batch.targets is not None]
        targets_N = torch.cat(targets) if targets else None
    except RuntimeError:
        raise UserError(f"{place} yields batches of different shapes; pad them to one length") from None
    if batches[0].named:
        check_names(inputs, place, description)
    count = len(next(iter(inputs.values())))
    if targets_N is not None and (len(targets_N) != count or targets_N.is_floating_point()):
        raise UserError(
            f"{place} gives {len(targets_N)} targets of {targets_N.dtype} for {count} samples; "
            "give integer classes, the first axis being the samples"
        )
    return _labelled(
        Samples(inputs, targets_N, targets_N is not None), description, batches[0].shifted, place
    )


def _labelled(samples: Samples, description: ModelDescription, shifted: bool, place: str) -> Samples:
    """Targets of a causal language model shifted to the next token, and padding marked."""
    ids_NT, mask_NT = samples.inputs.get("input_ids"), samples.inputs.get("attention_mask")
    if description.kind == "causal_lm" and ids_NT is not None:
        targets_NT = samples.targets
        if targets_NT is None or not shifted:
            now_NT = ids_NT if targets_NT is None else targets_NT
            if mask_NT is not None:
                now_NT = now_NT.masked_fill(mask_NT == 0, IGNORED)
            targets_NT = torch.cat([now_NT[:, 1:], torch.full_like(now_NT[:, :1], IGNORED)], dim=1)
        if mask_NT is not None:
            targets_NT = targets_NT.masked_fill(mask_NT == 0, IGNORED)
        return Samples(samples.inputs, targets_NT, labelled=True)
    if mask_NT is not None and description.kind in _PER_POSITION and not bool(mask_NT.all()):
        if description.hears:
            raise UserError(
                f"{place} pads sound, and which outputs of the model are padding is not known; cut the samples to one "
                "length, and leave attention_mask out"
            )
        targets_NT = torch.zeros_like(mask_NT) if samples.targets is None else samples.targets
        return Samples(samples.inputs, targets_NT.masked_fill(mask_NT == 0, IGNORED), samples.labelled)
    return samples


def _check_classes(samples: Samples, place: str, description: ModelDescription) -> None:
    if not samples.labelled or samples.targets is None or len(description.classes) < 2:
        return
    wrong = (samples.targets != IGNORED) & (
        (samples.targets < 0) | (samples.targets >= len(description.classes))
    )
    if wrong.any():
        raise UserError(
            f"{place} holds class {int(samples.targets[wrong][0])}, but the model in {description.path} has "
            f"classes 0 to {len(description.classes) - 1}; correct the labels or the model"
        )


def _check_tokens(samples: Samples, place: str, description: ModelDescription) -> None:
    ids_NT = samples.inputs.get("input_ids")
    if not description.takes_tokens or ids_NT is None:
        return
    if (
        description.vocab_size is not None
        and not 0 <= int(ids_NT.min()) <= int(ids_NT.max()) < description.vocab_size
    ):
        wrong = ids_NT[(ids_NT < 0) | (ids_NT >= description.vocab_size)]
        raise UserError(
            f"{place} holds token id {int(wrong[0])} but the model's vocabulary has ids 0 to "
            f"{description.vocab_size - 1}; use the tokenizer that belongs to the model"
        )
    if description.max_positions is not None and ids_NT.shape[1] > description.max_positions:
        raise UserError(
            f"{place} has samples of {ids_NT.shape[1]} tokens, more than the model's "
            f"{description.max_positions} positions; cut them"
        )
