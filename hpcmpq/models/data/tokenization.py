"""How a model's directory turns text into tokens, and what its tokenizer puts around a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.data.sources import Documents, Source
from hpcmpq.models.description import ModelDescription
from hpcmpq.models.factories import describe

BYTE_VOCAB = 256

_PROBE = "a text"


@dataclass(frozen=True)
class Frame:
    """Special tokens that begin and end a text, such as BOS, or CLS and SEP.

    Attributes:
        start: Token ids before the text.
        end: Token ids after it.
        words: Both for people, as ``<bos> ...``; empty where there are none.
    """

    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    words: str = ""

    def __len__(self) -> int:
        return len(self.start) + len(self.end)


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer, or None where bytes or given ids are the tokens, and the frame of every sample."""

    tokenizer: Any = None
    frame: Frame = Frame()


def find_tokenization(
    source: Source, place: str, description: ModelDescription, special_tokens: bool | None
) -> Tokenization:
    """What turns a source into samples; nothing is loaded for a source that is samples already.

    Args:
        source: Texts, or a stream of token ids to be cut, get a frame.
        place: The setting and its value, for messages.
        description: Of the model.
        special_tokens: See `hpcmpq.settings.CalibrationConfig`.

    Raises:
        UserError: As `load_tokenizer` and `find_frame`.
    """
    stream = isinstance(source, Tensor) and source.ndim == 1 and not source.is_floating_point()
    if not description.takes_tokens or not (isinstance(source, Documents) or stream):
        return Tokenization()
    cut = stream or description.kind == "causal_lm"
    framed = not cut if special_tokens is None else special_tokens
    if stream and not (framed and description.has_tokenizer):
        return Tokenization()
    tokenizer = load_tokenizer(description, place)
    return Tokenization(tokenizer, find_frame(tokenizer) if framed else Frame())


def load_tokenizer(description: ModelDescription, place: str) -> Any:
    """The directory's tokenizer, or None where bytes are the tokens.

    Raises:
        UserError: If the directory has none, or it cannot be loaded, and the vocabulary is not bytes.
    """
    if not description.has_tokenizer:
        if description.vocab_size != BYTE_VOCAB:
            size = "" if description.vocab_size is None else f" of {description.vocab_size}"
            raise UserError(
                f"{description.path} has no tokenizer for {place} and its vocabulary{size} is not {BYTE_VOCAB} "
                "bytes; save the tokenizer there or give a .npy array of token ids"
            )
        return None
    from hpcmpq.models.load import own_code, quiet_transformers

    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                description.path, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise UserError(
                own_code(description.path, error)
                or f"cannot load the tokenizer in {description.path}: {describe(error)}; copy it again"
            ) from error


def find_frame(tokenizer: Any) -> Frame:
    """What a tokenizer, asked for a text with and without special tokens, puts around it.

    Raises:
        UserError: If it changes the text's own tokens too, so that there is no telling.
    """
    if tokenizer is None:
        return Frame()
    whole = list(tokenizer(_PROBE, verbose=False)["input_ids"])
    inner = plain_tokens(tokenizer, _PROBE)
    for place in range(len(whole) - len(inner) + 1):
        stop = place + len(inner)
        if whole[place:stop] == inner:
            return _frame(tokenizer, whole[:place], whole[stop:])
    raise UserError(
        "the tokenizer gives a text other tokens where it adds special ones, so what it puts around a text is not "
        "known; set calibration.special_tokens: false, and give arrays of token ids if the model needs them"
    )


def plain_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text without special ones."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _frame(tokenizer: Any, start: Sequence[int], end: Sequence[int]) -> Frame:
    if not start and not end:
        return Frame()
    words = [*tokenizer.convert_ids_to_tokens(start), "...", *tokenizer.convert_ids_to_tokens(end)]
    return Frame(tuple(start), tuple(end), " ".join(words))
