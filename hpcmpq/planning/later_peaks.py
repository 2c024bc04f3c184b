"""What evaluation, rounding again, export and solve will hold: the most bytes at once in one process."""

from dataclasses import dataclass

from torch import Tensor, nn

from hpcmpq.calibrate.reduce import batches_kept
from hpcmpq.quantized.losses import MAX_KEPT_BYTES
from hpcmpq.quantized.side_by_side import MAX_STATE_BYTES
from hpcmpq.settings import Config
from hpcmpq.solve.memory import solve_peak_bytes
from hpcmpq.space import SearchSpace

MODELS = 3
"""Original, quantized and uniform."""

COPIES_READ = 2
"""Copies of the data while they are read: stages that need other samples than those of calibration choose again."""

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
        reround: Of rounding the solution again and comparing it; None where no weight can be.
        solve: Of adding shards up and of solving for budgets.
    """

    evaluate: int
    export: int
    reround: int | None
    solve: int


def later_peaks(
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    z_NTV: Tensor,
    state: int,
    block_bytes: tuple[int, int] | None,
    reading: int,
    again: int | None,
    num_ranges: int,
) -> LaterPeaks:
    """All peaks.

    Args:
        model: In memory, or streamed.
        config: Of the run.
        space: Its groups.
        z_NTV: The outputs of one pass.
        state: Numbers in a hidden state of one pass; 0 where the model is no chain of blocks.
        block_bytes: Of a streamed model, bytes outside its blocks and of the largest block.
        reading: Bytes while the data are read, which is before the model is.
        again: Bytes while weights are rounded again; None where none can be.
        num_ranges: Ranges of samples that units measure apart.
    """
    output_bytes, state_bytes = z_NTV.nbytes, z_NTV.element_size() * state
    parameters = list(model.parameters())
    itemsize = parameters[0].element_size()
    searched = sum(group.numel for group in space.groups)
    largest = max(member.numel for group in space.groups for member in group.members)
    rounding = COPIES_OF_ROUNDING * max(itemsize, FULL_PRECISION) * largest
    scales = FULL_PRECISION * 2 * searched // (config.quantizer.group_size or 64)
    outputs = COPIES_OF_OUTPUTS * output_bytes
    weights, in_block = sum(block_bytes or (p.nbytes for p in parameters)), itemsize * searched_at_once(space)

    def measuring(num_models: int, num_samples: int) -> int:
        """Bytes while whole assignments are measured."""
        passes = -(-num_samples // config.calibration.samples_per_pass)
        if block_bytes is None:
            kept = min(MAX_KEPT_BYTES, passes * output_bytes)
            return weights + itemsize * searched + scales + kept + max(rounding, outputs)
        states = min(MAX_STATE_BYTES, num_models * passes * state_bytes)
        return weights + scales + states + max(in_block + rounding, outputs)

    if block_bytes is None:
        numel = sum(p.numel() for p in parameters)
        in_full = max(weights + FULL_PRECISION * searched, FULL_PRECISION * numel)
        exporting = in_full + scales + max(rounding, outputs)
    else:
        compared = FULL_PRECISION * max(p.numel() for p in parameters)  # one tensor at a time
        exporting = weights + scales + max(in_block + rounding, compared, outputs)
    again = None if again is None else max(reading, again, measuring(2, config.calibration.held_out))
    solving = solve_peak_bytes(space, config.solver, batches_kept(num_ranges, space.num_options))
    return LaterPeaks(
        max(reading, measuring(MODELS, config.evaluation.num_samples)), exporting, again, solving
    )


def searched_at_once(space: SearchSpace) -> int:
    """Searched numbers of the block that has most, or of what lies outside the blocks."""
    numel: dict[int | None, int] = {}
    for group in space.groups:
        numel[group.block] = numel.get(group.block, 0) + group.numel
    return max(numel.values())
