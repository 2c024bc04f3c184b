"""What calibration will cost, before it runs: forward passes, arithmetic, memory, bytes of shards and time.

Counts follow from the plan; activations come from one forward pass with its shapes watched, and time from a few
timed ones. Only methods that run options through an engine (`hpcmpq.sensitivity.FORWARD_ONLY`) are predicted.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpcmpq.config import Config
from hpcmpq.models.chain.chain import Inputs
from hpcmpq.models.chain.find_chain import find_chain
from hpcmpq.models.chain.places import Places, first_block, is_outside, places_of_groups
from hpcmpq.models.outputs import forward
from hpcmpq.plan import WorkUnit
from hpcmpq.quantized.variants import KEPT_BYTES
from hpcmpq.response.engine import OPTIONS_PER_PASS, wave_size
from hpcmpq.sensitivity.features import COLUMNS_PER_STEP
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.space import SearchSpace

PEAK_FACTOR = 2.0
"""Peak memory and shards are within this factor of what a run measures (tests/planning/test_cost_estimate.py)."""

SPAWNED_SHARE = 0.65
"""Share of a block that an option of its own weights runs, on average over the weights of a transformer block."""

PROBE_PASSES = 3


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a whole calibration.

    Attributes:
        forwards: Forward passes of the whole model on all calibration samples.
        flops: Floating-point operations in the layers that are searched.
        shard_bytes: Of all shards.
        peak_bytes: Tensors in a worker's memory at once, on the device where there is one.
        seconds: On one worker like the machine that planned; None where the model is streamed.
        engine: ``wavefront``, ``whole``.
    """

    forwards: float
    flops: float
    shard_bytes: int
    peak_bytes: int
    seconds: float | None
    engine: str


@torch.no_grad()
def estimate_cost(
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    units: tuple[WorkUnit, ...],
    inputs: Inputs,
    block_bytes: tuple[int, int] | None = None,
) -> CostEstimate:
    """The predicted cost of a plan's calibration by an engine.

    Args:
        model: In memory, or streamed.
        config: Of the run.
        space: Its groups and options.
        units: Its work units.
        inputs: Of the samples of one pass.
        block_bytes: Of a streamed model, bytes outside its blocks and of the largest block.
    """
    chain = None if config.sensitivity.engine == "whole" else find_chain(model, inputs, space.groups)
    num_samples = max(unit.sample_stop for unit in units)
    per_pass = len(next(iter(inputs.values())))
    z_NTV, widest, state = _watch(model, inputs, None if chain is None else chain.blocks[0])
    probes = num_probes(config.sensitivity.probes, z_NTV.shape[2])
    num_features = z_NTV.shape[1] * (probes or z_NTV.shape[2])
    forwards = 1.0
    num_blocks = None if chain is None else len(chain.blocks)
    places = [None] * len(space.groups) if chain is None else places_of_groups(chain, model, space.groups)
    for place, formats in zip(places, space.formats, strict=True):
        forwards += len(formats) * (1.0 if place is None else _share(place))
    macs = sum(group.macs for group in space.groups) * num_samples
    seconds = None
    if block_bytes is None:
        seconds = forwards * _seconds(lambda: forward(model, inputs)) * num_samples / per_pass
    return CostEstimate(
        forwards,
        2.0 * macs * forwards,
        sum(_shard_bytes(space, unit, num_features) for unit in units),
        _peak_bytes(
            model, config, space, units[0], z_NTV, widest, state, num_features, num_blocks, block_bytes
        ),
        seconds,
        "whole" if chain is None else "wavefront",
    )


def _share(places: Places) -> float:
    """Share of a forward pass that an option of a group at these places of a chain runs."""
    num_blocks = len(places) - 1
    return 1.0 if is_outside(places) else (num_blocks - first_block(places) - 1 + SPAWNED_SHARE) / num_blocks


def _options(space: SearchSpace, unit: WorkUnit) -> int:
    return sum(len(names) for names in space.formats[unit.group_start : unit.group_stop])


def _shard_bytes(space: SearchSpace, unit: WorkUnit, num_features: int) -> int:
    columns, samples = _options(space, unit), unit.sample_stop - unit.sample_start
    if columns == space.num_options:
        return 8 * (1 + 2 * columns + 2 * columns * space.num_options)
    return samples * (8 + 8 * columns + 4 * columns * num_features)


def _peak_bytes(
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    unit: WorkUnit,
    z_NTV: Tensor,
    widest: int,
    state: int,
    num_features: int,
    num_blocks: int | None,
    block_bytes: tuple[int, int] | None,
) -> int:
    itemsize = 8 if z_NTV.dtype == torch.float64 else 4
    columns, per_pass = _options(space, unit), len(z_NTV)
    at_once = (
        1 if num_blocks is None else min(config.sensitivity.options_per_pass or OPTIONS_PER_PASS, columns)
    )
    if block_bytes is None:
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    else:
        weights = sum(block_bytes)
    in_wave = 0
    if num_blocks is not None:
        options, wave_bytes = wave_size(
            config.sensitivity.options_per_wave, columns, block_bytes is not None, config.low_precision
        )
        in_wave = min(columns, max(options, wave_bytes // (itemsize * state)))
    numel = [g.numel * len(names) for g, names in zip(space.groups, space.formats, strict=True)]
    scales = 4 * sum(numel) // (config.quantizer.group_size or 64)
    kept = itemsize * sum(numel)
    variants = kept if kept <= KEPT_BYTES and block_bytes is None else 0
    largest = max(g.numel for g in space.groups)
    spawned = itemsize * largest * (min(at_once, max(map(len, space.formats))) + 2)
    states = itemsize * state * (in_wave + at_once + (num_blocks or 0) + 1)
    activations = itemsize * widest * at_once * 3
    outputs = itemsize * z_NTV.numel() * (at_once + 6)
    features = itemsize * per_pass * columns * num_features
    products = 8 * 6 * columns * min(columns + COLUMNS_PER_STEP, space.num_options)
    # Features are complete when states are gone but for the last; products come after both.
    working = max(spawned + activations, outputs) + states + features
    return weights + scales + variants + max(working, features + products)


def _watch(model: nn.Module, inputs: Inputs, block: nn.Module | None) -> tuple[Tensor, int, int]:
    """Outputs, elements of the widest output of any layer, and of a hidden state: at most the widest where the
    blocks are pieces of a graph, which the model itself does not call.
    """
    sizes = [0]
    state = [0]

    def leaf(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    def first(_: nn.Module, __: Any, output: Any) -> None:
        state.append((output[0] if isinstance(output, tuple) else output).numel())

    inner = [module for module in model.modules() if not any(True for _ in module.children())]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    handles = [module.register_forward_hook(leaf) for module in inner if module is not head]
    if block is not None:
        handles.append(block.register_forward_hook(first))
    try:
        z_NTV = forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return z_NTV, max(sizes), max(state) or max(sizes)


def _seconds(run: Callable[[], object]) -> float:
    """Median seconds of a run on one thread, as workers run."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    try:
        run()
        for _ in range(PROBE_PASSES):
            start = time.monotonic()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic() - start)
    finally:
        torch.set_num_threads(num_threads)
    return statistics.median(times)
