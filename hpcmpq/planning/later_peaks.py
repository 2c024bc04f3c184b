"""What evaluation and export will hold, before they run: the most bytes of tensors at once in one process."""

from dataclasses import dataclass

from torch import Tensor, nn

from hpcmpq.quantized.losses import MAX_KEPT_BYTES
from hpcmpq.quantized.side_by_side import MAX_STATE_BYTES
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace

MODELS = 3
"""Original, quantized and uniform."""

COPIES_OF_ROUNDING = 4
"""Copies of a weight while it is rounded: scaled, its codes, decoded, and what it becomes."""

COPIES_OF_OUTPUTS = 6
"""Copies of one pass's outputs while two models are compared."""

FULL_PRECISION = 4
"""Bytes of a number in what an export is compared in."""


@dataclass(frozen=True)
class LaterPeaks:
    """Bytes of tensors.

    Attributes:
        evaluate: Of an evaluation with engine ``torch``.
        export: Of an export of the checkpoint, read back.
    """

    evaluate: int
    export: int


def later_peaks(
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    z_NTV: Tensor,
    state: int,
    block_bytes: tuple[int, int] | None,
) -> LaterPeaks:
    """The peaks of both.

    Args:
        model: In memory, or streamed.
        config: Of the run.
        space: Its groups.
        z_NTV: The outputs of one pass.
        state: Numbers in a hidden state of one pass; 0 where the model is no chain of blocks.
        block_bytes: Of a streamed model, bytes outside its blocks and of the largest block.
    """
    output_bytes, state_bytes = z_NTV.nbytes, z_NTV.element_size() * state
    parameters = list(model.parameters())
    itemsize = parameters[0].element_size()
    searched = sum(group.numel for group in space.groups)
    largest = max(member.numel for group in space.groups for member in group.members)
    rounding = COPIES_OF_ROUNDING * max(itemsize, FULL_PRECISION) * largest
    scales = FULL_PRECISION * 2 * searched // (config.quantizer.group_size or 64)
    outputs = COPIES_OF_OUTPUTS * output_bytes
    passes = -(-config.evaluation.num_samples // config.calibration.samples_per_pass)
    if block_bytes is None:
        weights = sum(p.nbytes for p in parameters)
        numel = sum(p.numel() for p in parameters)
        kept = min(MAX_KEPT_BYTES, passes * output_bytes)
        in_full = max(weights + FULL_PRECISION * searched, FULL_PRECISION * numel)
        return LaterPeaks(
            weights + itemsize * searched + scales + kept + max(rounding, outputs),
            in_full + scales + max(rounding, outputs),
        )
    outside, block = block_bytes
    states = min(MAX_STATE_BYTES, MODELS * passes * state_bytes)
    compared = FULL_PRECISION * max(p.numel() for p in parameters)  # one tensor at a time
    held = outside + block + scales
    in_block = itemsize * _searched_in_a_block(space)
    return LaterPeaks(
        held + states + max(in_block + rounding, outputs), held + max(in_block + rounding, compared, outputs)
    )


def _searched_in_a_block(space: SearchSpace) -> int:
    numel: dict[int | None, int] = {}
    for group in space.groups:
        numel[group.block] = numel.get(group.block, 0) + group.numel
    return max(numel.values())
