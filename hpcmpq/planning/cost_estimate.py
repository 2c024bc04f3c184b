"""What calibration will cost, before it runs: forward passes, arithmetic, memory, bytes of shards and time.

Counts follow from the plan; activations come from one forward pass with its shapes watched, and time from parts of
a pass that are timed alone. Only methods that run options through an engine (`forward_only` in `hpcmpq.sensitivity`)
are predicted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn

from hpcmpq.calibrate.reduce import sample_ranges
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.streaming import Streamed, streamed_chain
from hpcmpq.plan import WorkUnit
from hpcmpq.planning.again_seconds import again_seconds
from hpcmpq.planning.later_peaks import COPIES_READ, later_peaks
from hpcmpq.planning.part_times import PartTimes, time_parts, total_seconds
from hpcmpq.planning.peak_parts import num_options, peak_parts_of
from hpcmpq.planning.rounding_estimate import again_bytes, rounding_bytes, rounding_seconds
from hpcmpq.planning.seen_pass import SeenPass, output_elements, see
from hpcmpq.quantized.losses import MAX_KEPT_BYTES
from hpcmpq.quantized.variants import KEPT_BYTES
from hpcmpq.rounding.options import stored_formats
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.sensitivity.sampled_positions import find_head
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.run_dir import RunDir

PEAK_FACTOR = 2.0
"""Peak memory and shards are within this factor of what a run measures (tests/planning/test_cost_estimate.py)."""


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a whole calibration.

    Attributes:
        forwards: Forward passes of the whole model on all calibration samples that take as long; where nothing is
            timed, that have as much arithmetic.
        flops: Floating-point operations in the layers that are searched.
        shard_bytes: Of all shards.
        peak_bytes: Tensors in a worker's memory at once, on the device where there is one.
        refine_peak_bytes: The same of a worker that refines: two neighbours a group, around other weights.
        round_peak_bytes: The same of a worker that makes codes of options; None where none are made.
        round_seconds: As `seconds`, of making them.
        evaluate_peak_bytes: Of tensors in a process that evaluates with engine ``torch``.
        export_peak_bytes: Of tensors in a process that exports the checkpoint and reads it back.
        peak_parts: `peak_bytes` by what takes them.
        reround_peak_bytes: Of tensors in a process that rounds the solution again; None where no weight can be.
        solve_peak_bytes: Of arrays in a process that reduces and solves.
        reround_seconds: As `seconds`, of one process that rounds the solution again; None where no weight can be.
        seconds: On one worker like the machine that planned; None where the model is streamed.
        engine: ``wavefront``, ``whole``.
    """

    forwards: float
    flops: float
    shard_bytes: int
    peak_bytes: int
    refine_peak_bytes: int
    seconds: float | None
    engine: str
    round_peak_bytes: int | None = None
    round_seconds: float | None = None
    evaluate_peak_bytes: int | None = None
    export_peak_bytes: int | None = None
    peak_parts: Mapping[str, int] = field(default_factory=dict)
    reround_peak_bytes: int | None = None
    solve_peak_bytes: int | None = None
    reround_seconds: float | None = None


@torch.no_grad()
def estimate_cost(
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    units: tuple[WorkUnit, ...],
    batch: Samples,
    block_bytes: tuple[int, int] | None = None,
    num_rounding_samples: int = 0,
    read_bytes: int = 0,
    keeps: bool = False,
    ahead_bytes: int = 0,
    streamed: Streamed | None = None,
) -> CostEstimate:
    """The predicted cost of a plan's calibration by an engine.

    Args:
        model: In memory, or streamed.
        config: Of the run.
        space: Its groups and options.
        units: Its work units.
        batch: The samples of one pass.
        block_bytes: Of a streamed model, bytes outside its blocks and of the largest block.
        num_rounding_samples: That codes are fitted on.
        read_bytes: Of all samples in the data.
        keeps: Whether options run twice, once with the original's choices of experts.
        ahead_bytes: Of the block that a worker reads ahead of a streamed one, where that is in the device's memory.
        streamed: The model's blocks, where they are read when they run.

    Raises:
        UserError: If a streamed model is no chain of the blocks that are streamed.
    """
    chain = None if config.sensitivity.engine == "whole" else find_chain(model, batch.inputs, space.groups)
    chain = streamed_chain(chain, streamed)
    seen = see(model, chain, space.groups, batch.inputs)
    positions, num_outputs = config.sensitivity.loss_positions, seen.z_NTV.shape[2]
    probes = num_probes(config.sensitivity.probes, num_outputs)
    head = find_head(positions, num_outputs, probes, config.objective, model, batch)
    width = None if head is None else head.weight.shape[1]
    seen = replace(seen, head_width=width, repeats=2 if keeps else 1)
    times = time_parts(model, chain, head, config, space, batch, probes) if block_bytes is None else None
    per_pass = len(batch)
    cost = cost_of_pass(
        seen, model, config, space, units, per_pass, block_bytes, num_rounding_samples, times, read_bytes, ahead_bytes
    )  # fmt: skip
    if times is None:
        return cost
    num_passes = num_rounding_samples / per_pass
    again_s = again_seconds(model, config, space, batch, times, num_passes, chain is not None)
    return replace(cost, reround_seconds=again_s)


def cost_of_pass(
    seen: SeenPass,
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    units: tuple[WorkUnit, ...],
    per_pass: int,
    block_bytes: tuple[int, int] | None,
    num_rounding_samples: int,
    times: PartTimes | None = None,
    read_bytes: int = 0,
    ahead_bytes: int = 0,
) -> CostEstimate:
    """The cost of a calibration whose passes are like one that was seen.

    Args:
        seen: A pass.
        model: In memory, streamed, or shapes alone.
        config: Of the run.
        space: Its groups and options.
        units: Its work units.
        per_pass: Samples of a pass.
        block_bytes: Of a streamed model, bytes outside its blocks and of the largest block.
        num_rounding_samples: That codes are fitted on.
        times: Of the pass's parts, if they were timed.
        read_bytes: Of all samples in the data, if they were read.
        ahead_bytes: As in `estimate_cost`.
    """
    z_NTV, widest, chained = seen.z_NTV, seen.widest, seen.num_blocks is not None
    num_samples = max(unit.sample_stop for unit in units)
    probes = num_probes(config.sensitivity.probes, z_NTV.shape[2])
    num_features = z_NTV.shape[1] * (probes or z_NTV.shape[2])
    pairs = zip(seen.shares, space.formats, strict=True)
    shares = [share for share, names in pairs for _ in names] * seen.repeats
    macs = sum(group.macs for group in space.groups) * num_samples
    forwards, seconds = seen.repeats + sum(shares), None
    flops = 2.0 * macs * forwards
    if times is not None:
        num_passes = num_samples / per_pass
        seconds = total_seconds(times, shares, num_passes, _kept_bytes(model, space) <= KEPT_BYTES)
        forwards = seconds / (num_passes * times.forward)
    outputs = output_elements(seen, probes, config.sensitivity.loss_positions)
    beside = SearchSpace(space.groups, tuple(formats[:2] for formats in space.formats))
    whole = replace(units[0], group_start=0, group_stop=len(space.groups))
    itemsize = z_NTV.element_size()
    searched = itemsize * sum(group.numel for group in space.groups)
    outside = itemsize * sum(group.numel for group in space.groups if group.block is None)
    base = searched if block_bytes is None else block_bytes[1] + outside
    weights = sum(block_bytes or (p.numel() * p.element_size() for p in model.parameters()))
    passes = -(-(units[0].sample_stop - units[0].sample_start) // per_pass)
    ahead = None if block_bytes is None else ahead_bytes
    whole_losses = weights + ahead_bytes + min(MAX_KEPT_BYTES, passes * z_NTV.nbytes) + 4 * z_NTV.nbytes
    # Options run with bfloat16 weights held in float32, and whole assignments do not.
    wide = 2 if config.model.dtype == "bfloat16" else 1
    refining = replace(config, sensitivity=replace(config.sensitivity, products=None))
    peak_parts, refine_parts = (
        peak_parts_of(seen, wide * weights, own, options, unit, num_features, ahead and wide * ahead, outputs)
        for own, options, unit in ((config, space, units[0]), (refining, beside, whole))
    )
    formats, round_bytes, round_s = stored_formats(space, config.quantizer), None, None
    num_positions = z_NTV.shape[:2].numel()
    state, activations = seen.state if chained else 0, 3 * itemsize * widest
    batches = -(-num_rounding_samples // per_pass)
    states, given = itemsize * state * batches, seen.given * (batches if seen.given_apart else 1)
    if formats:
        held = weights + ahead_bytes
        round_bytes = rounding_bytes(model, space, formats, held, states + given, num_positions, activations)
        if times is not None:
            num_passes = num_rounding_samples / per_pass
            round_s = rounding_seconds(
                model, formats, config.quantizer, num_positions, num_passes, times.forward
            )
    waiting = 2 * states + given
    again = again_bytes(model, space, config.quantizer, weights, waiting, num_positions, activations)
    reading = COPIES_READ * read_bytes
    num_ranges = len(sample_ranges(units))
    later = later_peaks(model, config, space, z_NTV, state, block_bytes, reading, again, num_ranges)
    return CostEstimate(
        forwards,
        flops,
        sum(_shard_bytes(space, unit, num_features, config.sensitivity.screen) for unit in units),
        sum(peak_parts.values()),
        max(sum(refine_parts.values()) + wide * base, whole_losses + base, reading),
        seconds,
        "wavefront" if chained else "whole",
        round_bytes,
        round_s,
        later.evaluate,
        later.export,
        peak_parts,
        later.reround,
        later.solve,
    )


def keep_cost(run: RunDir, cost: CostEstimate | None, fingerprint: str) -> None:
    """Write `cost.json`; without an estimate none stays, which would be of a plan that was there before."""
    if cost is None:
        run.file("cost.json").unlink(missing_ok=True)
    else:
        write_artefact(run.file("cost.json"), {**asdict(cost), "fingerprint": fingerprint})


def _kept_bytes(model: nn.Module, space: SearchSpace) -> int:
    pairs = zip(space.groups, space.formats, strict=True)
    itemsize = next(model.parameters()).element_size()
    return itemsize * sum(group.numel * len(formats) for group, formats in pairs)


def _shard_bytes(space: SearchSpace, unit: WorkUnit, num_features: int, keeps_columns: bool) -> int:
    columns, samples = num_options(space, unit), unit.sample_stop - unit.sample_start
    if columns == space.num_options and not keeps_columns:
        return 8 * (1 + 2 * columns + 2 * columns * space.num_options)
    return samples * (8 + 8 * columns + 4 * columns * num_features)
