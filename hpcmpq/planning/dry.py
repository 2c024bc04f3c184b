"""A plan from a model's `config.json` alone: no weights, no data, no run directory.

The model is built of shapes, one pass of them is run, and everything that a plan counts is counted: groups, options,
bytes, work units, forward passes, arithmetic, memory. Seconds follow from what a `Device` and a `Site` are said to do.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpcmpq.errors import UserError
from hpcmpq.export.holdable import ExportSubject, check_exports
from hpcmpq.models.active_weights import active_shares
from hpcmpq.models.blocks import block_bytes, largest_list
from hpcmpq.models.deployable import deployable_groups
from hpcmpq.models.dequantized import unpacked
from hpcmpq.models.description import describe_model
from hpcmpq.models.groups import num_fixed_bytes
from hpcmpq.models.outputs import tried_forward
from hpcmpq.models.stored_dtype import stored_dtype
from hpcmpq.models.streaming import shapes_only
from hpcmpq.plan import Plan
from hpcmpq.planning.balanced_samples import check_balance
from hpcmpq.planning.cost_estimate import CostEstimate, cost_of_pass
from hpcmpq.planning.original import check_method
from hpcmpq.planning.peak_parts import ahead_bytes
from hpcmpq.planning.recommended import EFFICIENT
from hpcmpq.planning.scaling import Prediction, Site, Workload, predict
from hpcmpq.planning.search import SPREAD, search_space, units_of
from hpcmpq.planning.seen_pass import see_shapes
from hpcmpq.planning.starter import example_inputs
from hpcmpq.quantizers.ranges import NUM_FACTORS
from hpcmpq.sensitivity import find_method, forward_only_names
from hpcmpq.sensitivity.probes import num_probes
from hpcmpq.settings import Config
from hpcmpq.solve.feasibility import check_solvable
from hpcmpq.solve.formulate import plan_costs, uniform_choices
from hpcmpq.space import SearchSpace
from hpcmpq.targets import find_target

PASSED_BYTES = 56
"""Bytes that go through a device's memory for one weight and one candidate scale of it: seven operations in float32."""


@dataclass(frozen=True)
class Device:
    """What one worker's device is said to do.

    Attributes:
        flops_per_s: Sustained, in the products of large matrices in the run's precision.
        memory_bytes_per_s: Through its memory, in operations on single numbers.
    """

    flops_per_s: float = 1e14
    memory_bytes_per_s: float = 2e12


@dataclass(frozen=True)
class DryPlan:
    """What a run would be.

    Attributes:
        plan: Groups, options, units, bytes outside the groups; no facts of weights or samples.
        cost: Of calibration.
        model_bytes: Of the weights in the run's precision.
        block_bytes: Bytes outside the blocks, and of the largest block.
        sizes: {format: costs of every group in it}, by name of the cost.
        seconds: {what for: of all workers together}.
        predictions: On 1, 2, 4, ... workers.
    """

    plan: Plan
    cost: CostEstimate
    model_bytes: int
    block_bytes: tuple[int, int]
    sizes: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    predictions: tuple[Prediction, ...]

    @property
    def recommended(self) -> Prediction:
        """The most workers of whose time `EFFICIENT` goes into units."""
        busy = [found for found in self.predictions if found.efficiency >= EFFICIENT]
        return busy[-1] if busy else self.predictions[0]

    @property
    def device_hours(self) -> float:
        """Hours of one device."""
        return sum(self.seconds.values()) / 3600

    @property
    def bound_by(self) -> str:
        """What most of the time goes into."""
        return max(self.seconds, key=lambda name: self.seconds[name])


def dry_plan(config: Config, device: Device, site: Site) -> DryPlan:
    """What planning would find of a model of which there is a `config.json`, and how long calibration would take.

    Args:
        config: Of the run; the data are not looked at, there are as many samples as it wants.
        device: Of a worker.
        site: Where workers read the model.

    Raises:
        UserError: If the model cannot be built of shapes, or a pattern is wrong.
        Infeasible: If no assignment meets the budgets.
    """
    check_method(config)
    if not find_method(config.sensitivity.method).forward_only:
        raise UserError(
            f"plan --dry predicts {' and '.join(forward_only_names())}, not {config.sensitivity.method}; set one of "
            "these, or plan the run itself"
        )
    if config.model.path is None:
        raise UserError("plan --dry looks at a config.json, and model.factory has none; leave --dry out")
    with tempfile.TemporaryDirectory() as scratch:
        model = unpacked(config.model, Path(scratch) / "model", weights=False)
        config = replace(config, model=model)
        plan, cost, block_sizes, repeats = _counted(config)
        stored = stored_dtype(config.model) or torch.float32
    check_solvable(plan)
    costs, space = plan_costs(plan), plan.space
    by_format = {
        name: {key: cost.value(choice_G, space.offset_G) for key, cost in costs.items()}
        for name, choice_G in uniform_choices(space).items()
    }
    outside, blocks = block_sizes
    model_bytes = outside + sum(blocks)
    read_bytes = model_bytes * stored.itemsize // getattr(torch, config.model.dtype).itemsize
    seconds, work = _times(plan, cost, read_bytes, repeats, device, site)
    counts = [2**k for k in range(len(plan.units).bit_length())]
    found = tuple(predict(work, site, count) for count in counts)
    return DryPlan(plan, cost, model_bytes, (outside, max(blocks)), by_format, seconds, found)


def _counted(config: Config) -> tuple[Plan, CostEstimate, tuple[int, list[int]], int]:
    """The plan of a model of shapes, what calibration costs, bytes outside its blocks and of each, and how often an
    option runs.
    """
    target = find_target(config.target) if config.target else None
    count, dtype = target.fixed_bytes if target else None, stored_dtype(config.model)
    calibration, active = config.calibration, None
    inputs, length = _inputs(config)
    with shapes_only(config.model, inputs) as (model, shapes), torch.no_grad():
        tried_forward(model, shapes)
        check_balance(config, model)
        groups = deployable_groups(model, config.groups, shapes, target)
        space = search_space(config, groups, target)
        fixed = num_fixed_bytes(model, groups, dtype, count)
        if length:
            active = num_fixed_bytes(model, groups, dtype, count, active_shares(model))
        units = units_of(config, "dry", len(groups), calibration.num_samples)
        sizes = block_bytes(model, largest_list(model), getattr(torch, config.model.dtype).itemsize)
        probes = num_probes(config.sensitivity.probes, describe_model(config.model).vocab_size or 0)
        seen = see_shapes(model, groups, shapes, config, probes)
        cost = cost_of_pass(
            seen, model, config, space, units, calibration.samples_per_pass,
            (sizes[0], max(sizes[1])) if config.model.stream else None, calibration.num_samples,
            ahead_bytes=ahead_bytes(config, max(sizes[1])),
        )  # fmt: skip
    check_exports(ExportSubject(config, space, model))  # outside, where numbers of rows have values
    plan = Plan(
        config=config, space=space, units=units, facts={}, fingerprint="dry", import_paths=(), fixed_bytes=fixed,
        environment={}, active_fixed_bytes=active, tokens_per_sample=length,
    )  # fmt: skip
    return plan, cost, sizes, seen.repeats


def _inputs(config: Config) -> tuple[dict[str, Tensor], int]:
    """Of one pass, whose values nobody looks at; and how many tokens a sample has."""
    description, calibration = describe_model(config.model), config.calibration
    if not description.takes_tokens:
        [(name, values)] = example_inputs(description, Path(str(config.model.path))).items()
        return {name: values[:1].expand(calibration.samples_per_pass, *values.shape[1:])}, 0
    length = min(calibration.sequence_length, description.max_positions or calibration.sequence_length)
    return {"input_ids": torch.zeros(calibration.samples_per_pass, length, dtype=torch.int64)}, length


def _times(
    plan: Plan, cost: CostEstimate, read_bytes: int, repeats: int, device: Device, site: Site
) -> tuple[dict[str, float], Workload]:
    """Seconds of one worker that does all, by what for, and the units that workers share.

    Ranges are chosen once, by all workers together. A streamed model is read once a pass, by as many workers at once as
    a node has, a block while the one before it computes.
    """
    config, space = plan.config, plan.space
    passes = repeats * -(-config.calibration.num_samples // config.calibration.samples_per_pass)
    numel = sum(group.numel * len(names) for group, names in zip(space.groups, space.formats, strict=True))
    candidates = NUM_FACTORS if config.quantizer.range == "mse" else 1
    read_s = read_bytes / (site.node_bytes_per_s / site.workers_per_node)
    ranges_s = candidates * PASSED_BYTES * numel / device.memory_bytes_per_s
    seconds = {
        "arithmetic": cost.flops / device.flops_per_s,
        "rounding weights": passes * PASSED_BYTES * numel / device.memory_bytes_per_s,
    }
    shared = sum(seconds.values())
    if config.model.stream:
        waiting = seconds["waiting for weights"] = _waiting(space, passes * read_s, shared)
        shared += waiting
    else:
        seconds["reading weights"] = read_s
    seconds["choosing ranges"] = ranges_s
    total = sum(map(plan.work_of, plan.units))
    share_of = {unit: plan.work_of(unit) / total for unit in plan.units}
    return seconds, Workload(
        seconds_U=np.array([shared * share_of[unit] for unit in plan.units]),
        spread=SPREAD,
        shared_s=ranges_s,
        model_bytes=0.0 if config.model.stream else float(read_bytes),
        shard_bytes=cost.shard_bytes / len(plan.units),
    )


def _waiting(space: SearchSpace, reading_s: float, computing_s: float) -> float:
    """Seconds that a worker waits for blocks of a streamed model, of which the next is read while one computes.

    Args:
        space: Groups and formats: a block runs the options of its own groups and of those before it.
        reading_s: Of reading all blocks, in all passes.
        computing_s: Of what is done with them.
    """
    own_L = np.zeros(1 + max(group.block or 0 for group in space.groups))
    for group, names in zip(space.groups, space.formats, strict=True):
        own_L[group.block or 0] += len(names)
    run_L = 1 + np.cumsum(own_L)
    computed_L, read_s = computing_s * run_L / run_L.sum(), reading_s / len(own_L)
    return read_s + float(np.maximum(0.0, read_s - computed_L[:-1]).sum())
