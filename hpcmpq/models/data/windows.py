"""A stream of tokens as windows of one length, each between special tokens."""

import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.models.data.samples import IGNORED, Samples
from hpcmpq.models.data.tokenization import Frame


def windows(tokens_L: Tensor, sequence_length: int, frame: Frame = Frame()) -> Samples:  # noqa: B008
    """Windows [N, T] of consecutive tokens that do not overlap, each in a frame.

    Targets are the next tokens of the stream: of a window's last token too, whatever the frame puts there. Tokens of
    the frame are no targets; the one that the window's first token follows counts as a position, the others do not.

    Example:
        >>> samples = windows(torch.arange(7), 3)
        >>> samples.inputs["input_ids"].tolist(), samples.targets.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
        >>> samples = windows(torch.arange(7), 5, Frame((8,), (9,), "<s> ... </s>"))
        >>> samples.inputs["input_ids"].tolist(), samples.targets.tolist()
        ([[8, 0, 1, 2, 9], [8, 3, 4, 5, 9]], [[0, 1, 2, 3, -100], [3, 4, 5, 6, -100]])
    """
    length = sequence_length - len(frame)
    count = len(tokens_L) // length
    end = count * length
    own_NT = tokens_L[:end].view(count, length)
    following_L = torch.cat([tokens_L[1 : end + 1], tokens_L.new_full((1,), IGNORED)])[:end]
    before_NS, after_NE = (tokens_L.new_tensor(ids).repeat(count, 1) for ids in (frame.start, frame.end))
    first_NS = torch.full_like(before_NS, IGNORED)
    first_NS[:, -1:] = own_NT[:, :1]
    ids_NT = torch.cat([before_NS, own_NT, after_NE], dim=1)
    nothing_NE = torch.full_like(after_NE, IGNORED)
    targets_NT = torch.cat([first_NS, following_L.view(count, length), nothing_NE], dim=1)
    return Samples({"input_ids": ids_NT}, targets_NT, labelled=True)


def cut(tokens_L: Tensor, sequence_length: int, frame: Frame, place: str, what: str) -> Samples:
    """Windows of a stream that is long enough for one."""
    length = sequence_length - len(frame)
    if length < 1:
        raise UserError(
            f"calibration.sequence_length {sequence_length} leaves no token of {place} inside {frame.words}; raise it, "
            "or set calibration.special_tokens: false"
        )
    if len(tokens_L) < length:
        inside = f" less {len(frame)} for {frame.words}" if len(frame) else ""
        raise UserError(
            f"{place} has {len(tokens_L)} tokens, fewer than calibration.sequence_length {sequence_length}{inside}; "
            f"lower it or give more {what}"
        )
    return windows(tokens_L, sequence_length, frame)
