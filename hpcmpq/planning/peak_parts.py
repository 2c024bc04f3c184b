"""The memory of a worker that measures options, by what takes it."""

import torch

from hpcmpq.models.load import pick_device
from hpcmpq.plan import WorkUnit
from hpcmpq.planning.seen_pass import SeenPass
from hpcmpq.quantized.variants import KEPT_BYTES
from hpcmpq.response.engine import OPTIONS_PER_PASS, wave_size
from hpcmpq.sensitivity.features import COLUMNS_PER_STEP
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace


def num_options(space: SearchSpace, unit: WorkUnit) -> int:
    """Options that a unit measures."""
    return sum(len(names) for names in space.formats[unit.group_start : unit.group_stop])


def ahead_bytes(config: Config, block_bytes: int) -> int:
    """Bytes of the block that a worker reads ahead of the one that runs, which is in the memory of its processor.

    Args:
        config: Of the run.
        block_bytes: Of the largest block.
    """
    in_same_memory = config.model.stream and pick_device(config.model.device).type == "cpu"
    return block_bytes if in_same_memory else 0


def peak_parts_of(
    seen: SeenPass,
    weights: int,
    config: Config,
    space: SearchSpace,
    unit: WorkUnit,
    num_features: int,
    ahead_bytes: int | None,
    output_elements: tuple[int, int],
) -> dict[str, int]:
    """The most bytes at once, by what takes them; of what is never there at once what it adds.

    Args:
        seen: A pass.
        weights: Bytes of the model that are in memory.
        config: Of the run.
        space: Its groups and options.
        unit: What is measured.
        num_features: Of one option on one sample.
        ahead_bytes: Of the block that is read ahead of a streamed one; None where the model is in memory.
        output_elements: See `hpcmpq.planning.seen_pass.output_elements`.
    """
    z_NTV, state, num_blocks = seen.z_NTV, seen.state, seen.num_blocks
    itemsize = 8 if z_NTV.dtype == torch.float64 else 4
    columns, per_pass = num_options(space, unit), len(z_NTV)
    at_once = (
        1 if num_blocks is None else min(config.sensitivity.options_per_pass or OPTIONS_PER_PASS, columns)
    )
    in_wave = 0
    if num_blocks is not None:
        options, wave_bytes = wave_size(
            config.sensitivity.options_per_wave, columns, ahead_bytes is not None, config.low_precision
        )
        in_wave = min(columns, max(options, wave_bytes // (itemsize * state)))
    numel = [g.numel * len(names) for g, names in zip(space.groups, space.formats, strict=True)]
    scales = 4 * sum(numel) // (config.quantizer.group_size or 64)
    kept = itemsize * sum(numel)
    variants = kept if kept <= KEPT_BYTES and ahead_bytes is None else 0
    largest = max(g.numel for g in space.groups)
    spawned = itemsize * largest * (min(at_once, max(map(len, space.formats))) + 2)
    states = itemsize * state * (in_wave + at_once + (num_blocks or 0) + 1)
    activations = itemsize * seen.widest * at_once * 3
    outputs = itemsize * (output_elements[0] + at_once * output_elements[1])
    features = itemsize * per_pass * columns * num_features
    products = 8 * 6 * columns * min(columns + COLUMNS_PER_STEP, space.num_options)
    # Features are complete when states are gone but for the last; products come after both.
    parts = {
        "weights of the model": weights,
        "the next block, read ahead": ahead_bytes or 0,
        "ranges of all options": scales,
        "rounded weights kept": variants,
        "states of options": states,
        "features": features,
        "one group in its formats": spawned,
        "activations": activations,
    }
    rest = products - states - spawned - activations
    parts["outputs"] = max(0, outputs - spawned - activations)
    parts["products of features"] = max(0, rest - parts["outputs"])
    return {name: size for name, size in parts.items() if size}
