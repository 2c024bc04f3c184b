"""How likely a causal language model finds texts after others: what choices, next words and harnesses need.

Axis letters: R rows of a batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcmpq.models.data.tokenization import find_frame, load_tokenizer, plain_tokens
from hpcmpq.models.description import ModelDescription

Encode = Callable[[str], list[int]]


class Request(NamedTuple):
    """Token ids; the continuation's are scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class LogLikelihood(NamedTuple):
    """Σ log p of the continuation's tokens, and whether each is the most likely."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Encoder:
    """Texts as tokens: by the model's tokenizer, or bytes.

    Attributes:
        encode: Without special tokens.
        start: The token that a text without context follows.
        max_length: Most tokens that the model takes, or None.
        before: Special tokens that every context begins with, such as BOS.
    """

    encode: Encode
    start: int
    max_length: int | None
    before: tuple[int, ...] = ()

    def request(self, context: str, continuation: str) -> Request:
        """Tokens of both, cut as they are when they stand together; too long a context loses its beginning.

        Blanks at the context's end go to the continuation, since tokenizers attach them to what follows. Where both
        join so that no token would be left to score, the continuation begins where the tokens first differ.
        """
        stripped = context.rstrip(" ")
        continuation, context = context[len(stripped) :] + continuation, stripped
        before, whole = self.encode(context), self.encode(context + continuation)
        if len(whole) > len(before):
            return self.tokens(before, whole[len(before) :])
        same = next((k for k, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
        return self.tokens(whole[:same], whole[same:])

    def tokens(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        """A request from tokens; without context after the start token."""
        before = () if tuple(context[: len(self.before)]) == self.before else self.before
        context = (*before, *context) or (self.start,)
        if self.max_length is None:
            return Request(context, tuple(continuation))
        room = max(1, self.max_length + 1 - len(continuation))
        if len(context) > room > len(self.before):
            context = (*self.before, *context[len(self.before) - room :])
        return Request(context[-room:], tuple(continuation[: self.max_length]))


def make_encoder(description: ModelDescription, place: str, special_tokens: bool | None) -> Encoder:
    """The encoder of a model.

    Args:
        description: Of the model.
        place: The task, for messages.
        special_tokens: Whether contexts begin as the tokenizer begins a text; None is no.

    Raises:
        UserError: If its directory holds no tokenizer and its vocabulary is not bytes.
    """
    tokenizer: Any = load_tokenizer(description, place)
    if tokenizer is None:
        return Encoder(lambda text: list(text.encode()), ord("\n"), description.max_positions)
    start = next(
        (t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None),
        0,
    )
    return Encoder(
        lambda text: plain_tokens(tokenizer, text),
        start,
        description.max_positions,
        find_frame(tokenizer).start if special_tokens else (),
    )


def batch(requests: Sequence[Request]) -> dict[str, Tensor]:
    """Inputs of all requests, padded at the end, where causal models do not look.

    Example:
        >>> batch([Request((1, 2), (3,)), Request((4,), (5, 6, 7))])["input_ids"].tolist()
        [[1, 2, 0], [4, 5, 6]]
    """
    rows = [(*request.context, *request.continuation)[:-1] for request in requests]
    longest = max(map(len, rows))
    return {"input_ids": torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])}


def score(requests: Sequence[Request], z_RTV: Tensor) -> list[LogLikelihood]:
    """The score of each request of a batch from the outputs, in float64."""
    scores = []
    for request, z_TV in zip(requests, z_RTV, strict=True):
        first = len(request.context) - 1
        target_T = torch.tensor(request.continuation, device=z_TV.device)
        log_pi_TV = torch.log_softmax(z_TV[first : first + len(target_T)].double(), -1)
        chosen_T = log_pi_TV.gather(-1, target_T.unsqueeze(-1)).squeeze(-1)
        scores.append(LogLikelihood(float(chosen_T.sum()), bool((log_pi_TV.argmax(-1) == target_T).all())))
    return scores
