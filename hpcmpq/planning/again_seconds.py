"""How long rounding again at a solution will take one process, from its parts, each of which is timed alone.

For every layer the samples walk from the start of its block, or of a model that is no chain, up to the layer, in the
quantized model and, where the method compares with it, in the original.
"""

import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hpcmpq.formats import FORMATS
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.outputs import forward
from hpcmpq.models.weights import holder_of
from hpcmpq.planning.part_times import REPEATS, PartTimes, cpu_seconds, timed
from hpcmpq.rounding import BEST, RoundingMethod, find_rounding_method
from hpcmpq.rounding.again import is_rounded_again
from hpcmpq.rounding.layer_inputs import InputSums, hooked
from hpcmpq.rounding.linear_layers import is_linear_weight
from hpcmpq.rounding.methods import Fitted, rounded_rows
from hpcmpq.settings import Config
from hpcmpq.space import Member, SearchSpace

TIMED = 1024
"""Rows and columns of a weight that is timed, at most; times of larger ones follow from their sizes."""

MODELS = 2
"""Weights that are compared in the end, those before and those after."""


@dataclass(frozen=True)
class SharedInput:
    """Weights whose layers are given the same tensor.

    Attributes:
        members: The weights.
        share: Of a pass through all layers, up to the first of these from the start of its block.
    """

    members: list[Member]
    share: float


@dataclass
class FitTimes:
    """Seconds of what is done once for an input and for a weight, by size; each size is timed once.

    Attributes:
        method: How weights are rounded again.
        config: Of the run.
        positions: Inputs of a layer in one pass.
        device: Of the model.
        dtype: Of its inputs.
    """

    method: RoundingMethod
    config: Config
    positions: int
    device: torch.device
    dtype: torch.dtype
    _sums: dict[int, tuple[float, float, Fitted]] = field(default_factory=dict)
    _rows: dict[tuple[int, int, str], float] = field(default_factory=dict)

    def sums(self, member: Member) -> float:
        """Of adding one pass up."""
        columns = min(member.num_columns, TIMED)
        return self._of_input(columns)[0] * (member.num_columns / columns) ** 2

    def fit(self, member: Member) -> float:
        """Of what rows are rounded by."""
        columns = min(member.num_columns, TIMED)
        return self._of_input(columns)[1] * (member.num_columns / columns) ** 3

    def rows(self, member: Member, format_name: str) -> float:
        """Of all rows of a weight."""
        rows, columns = min(member.num_rows, TIMED), min(member.num_columns, TIMED)
        key = rows, columns, format_name
        if key not in self._rows:
            fitted, weight_RK = self._of_input(columns)[2], self._random(rows, columns).to(self.dtype)
            format, quantizer = FORMATS[format_name], self.config.quantizer
            self._rows[key], _ = timed(
                lambda: rounded_rows(weight_RK, fitted, format, quantizer, self._strength), 1
            )
        return self._rows[key] * member.num_rows / rows * (member.num_columns / columns) ** 2

    def _of_input(self, columns: int) -> tuple[float, float, Fitted]:
        if columns not in self._sums:
            x_NK = self._random(self.positions, columns).to(self.dtype)
            crossed = x_NK if self.method.needs_original else None
            sums = InputSums(torch.eye(columns, dtype=torch.float64, device=self.device), None)
            if crossed is not None:
                sums.cross_KK = torch.zeros_like(sums.hessian_KK)
            sums_s, _ = timed(lambda: sums.add(x_NK, crossed))
            fit_s, fitted = timed(lambda: self.method.fit(sums, self.config.quantizer, self._strength), 1)
            self._sums[columns] = sums_s, fit_s, fitted
        return self._sums[columns]

    @property
    def _strength(self) -> float:
        return self.method.strength

    def _random(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(*shape, generator=generator).to(self.device)


@torch.no_grad()
def again_seconds(
    model: nn.Module,
    config: Config,
    space: SearchSpace,
    batch: Samples,
    times: PartTimes,
    num_passes: float,
    chained: bool,
) -> float | None:
    """Seconds of one process after its start-up; None where nothing can be rounded again, or compared.

    Args:
        model: In memory.
        config: Of the run.
        space: Groups and options.
        batch: The samples of one pass.
        times: Of the parts of a pass.
        num_passes: Passes over the samples that rounding is fitted on.
        chained: Whether the model is a chain of blocks.
    """
    quantizer = config.quantizer
    formats = {
        member: names
        for group, all_names in zip(space.groups, space.formats, strict=True)
        if (names := [name for name in all_names if is_rounded_again(name, quantizer)])
        for member in group.members
        if is_linear_weight(model, member)
    }
    if not formats or not config.calibration.held_out:
        return None
    blocks = {m: group.block if chained else None for group in space.groups for m in group.members}
    method = find_rounding_method(config.reround.method or BEST)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shared = shared_inputs(model, batch, {member: blocks[member] for member in formats})
        parameter = next(model.parameters())
        first = next(iter(batch.inputs.values()))
        positions = first.numel() if not first.is_floating_point() else len(batch)
        parts = FitTimes(method, config, positions, parameter.device, parameter.dtype)
        walks = 1 + method.needs_original
        each_pass = walks * times.blocks * (1 + sum(own.share for own in shared))
        each_pass += sum(parts.sums(own.members[0]) * own.members[0].active for own in shared)
        once = sum(parts.fit(own.members[0]) for own in shared)
        once += sum(parts.rows(member, names[len(names) // 2]) for member, names in formats.items())
    finally:
        torch.set_num_threads(num_threads)
    held_passes = -(-config.calibration.held_out // config.calibration.samples_per_pass)
    comparing = held_passes * (1 + MODELS) * times.forward
    num_options = space.num_options / len(space.groups)
    return num_passes * each_pass + once + comparing + (times.rounding + times.ranges) / num_options


def shared_inputs(model: nn.Module, batch: Samples, blocks: dict[Member, int | None]) -> list[SharedInput]:
    """What layers are given, in the order in which they run; of consecutive ones that are given one tensor it is one.

    Args:
        model: In memory.
        batch: The samples of one pass.
        blocks: {weight: number of its block} of linear layers; None outside them.
    """
    passes = [_looked_at(model, batch, list(blocks)) for _ in range(REPEATS)]
    inputs = passes[-1][0]
    end_of = {m: statistics.median(ends[m] for _, ends in passes if m in ends) for own in inputs for m in own}
    total = max(end_of.values(), default=0.0) or 1.0
    starts: dict[int | None, float] = {None: 0.0}
    reached = 0.0
    shared = []
    for members in inputs:
        start = starts.setdefault(blocks[members[0]], reached)
        reached = max(reached, *(end_of[member] for member in members))
        shared.append(SharedInput(members, max(0.0, end_of[members[0]] - start) / total))
    return shared


def _looked_at(
    model: nn.Module, batch: Samples, members: list[Member]
) -> tuple[list[list[Member]], dict[Member, float]]:
    """Weights by what their layers are given in a pass, and the seconds from its start to each layer's last call."""
    inputs: list[list[Member]] = []
    ends: dict[Member, float] = {}
    last: list[Tensor] = []
    start = cpu_seconds()

    def look(member: Member, x: Tensor) -> None:
        is_first = member not in ends
        ends[member] = cpu_seconds() - start
        if is_first and last and last[0] is x:
            inputs[-1].append(member)
        elif is_first:
            inputs.append([member])
            last[:] = [x]

    with hooked({member: holder_of(model, member) for member in members}, look):
        forward(model, batch.inputs)
    return inputs, ends
