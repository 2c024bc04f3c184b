"""What rounding will take: memory and seconds of a worker that makes codes, and the memory of rounding again."""

from collections import Counter
from math import ceil

import torch
from torch import Tensor, nn

from hpcmpq.formats import FORMATS, Quantizer
from hpcmpq.planning.later_peaks import searched_at_once
from hpcmpq.planning.part_times import timed
from hpcmpq.quantizers import choose_qparams
from hpcmpq.quantizers.gptq import compensated_codes, compensation
from hpcmpq.rounding.again import is_rounded_again
from hpcmpq.rounding.linear_layers import is_linear_weight
from hpcmpq.rounding.matrices import num_matrices
from hpcmpq.rounding.options import StoredFormats
from hpcmpq.rounding.original_inputs import SUMS_BYTES
from hpcmpq.space import Member, SearchSpace

TIMED = 1024
"""Rows and columns of the weight that is timed, at most; times of others follow from its size."""

FLOATS_OF_ROUNDING = 3
"""Copies of a weight in float64 while it is rounded: as it is given, what is left of it, its codes."""

FLOATS_OF_FACTOR = 4
"""Matrices [K, K] in float64 while Σ x xᵀ is factorised, beside itself."""


MATRICES_AGAIN = 7
"""Matrices [K, K] while a weight is rounded again: Σ x̃ x̃ᵀ, Σ (x − x̃) x̃ᵀ, and what is made of them."""

MATRICES_SUMMED = 5
"""The same while they are summed: of all ranges of samples so far, of one, and a product."""


def rounding_bytes(
    model: nn.Module,
    space: SearchSpace,
    formats: StoredFormats,
    weights: int,
    states: int,
    positions: int,
    activations: int,
) -> int:
    """Most bytes of tensors at once in a worker.

    Args:
        model: The original.
        space: Groups.
        formats: What is made of each weight.
        weights: Bytes of the model that are in memory.
        states: Bytes of the hidden states of all samples, and of what blocks are given beside them.
        positions: Inputs of a layer in one pass.
        activations: Bytes of one pass.
    """
    sums: Counter[int | None] = Counter()
    for group in space.groups:
        sums[group.block] += sum(
            8 * num_matrices(model, m) * m.num_columns**2 for m in group.members if m in formats
        )
    widest = max(member.num_columns for member in formats)

    def while_rounding(member: Member) -> int:
        """Of one matrix, and of several: a byte for every code, again while a format is joined, and what is packed."""
        count = num_matrices(model, member)
        floats = FLOATS_OF_ROUNDING * member.numel // count + FLOATS_OF_FACTOR * member.num_columns**2
        packed = sum(FORMATS[name].num_bits for name in formats[member]) / 8
        codes = ceil(member.numel * (len(formats[member]) + 1 + packed))
        return 8 * floats + (codes if count > 1 else 0)

    rounding = max(map(while_rounding, formats))
    summing = activations + 8 * (positions * widest + widest**2)
    held = min(max(sums.values()), SUMS_BYTES + 8 * widest**2)
    return weights + states + held + max(rounding, summing)


def again_bytes(
    model: nn.Module,
    space: SearchSpace,
    quantizer: Quantizer,
    weights: int,
    states: int,
    positions: int,
    activations: int,
) -> int | None:
    """Most bytes of tensors at once while a solution is rounded again, or None where no weight can be.

    Args:
        model: The original.
        space: Groups and options.
        quantizer: How weights are rounded.
        weights: Bytes of the model that are in memory.
        states: Bytes of the hidden states of all samples, of both models, and of what blocks are given beside them; 0
            where it is no chain of blocks.
        positions: Inputs of a layer in one pass.
        activations: Bytes of one pass.
    """
    members = [
        member
        for group, names in zip(space.groups, space.formats, strict=True)
        if any(is_rounded_again(name, quantizer) for name in names)
        for member in group.members
        if is_linear_weight(model, member)
    ]
    if not members:
        return None
    itemsize = next(model.parameters()).element_size()
    rounded = itemsize * (searched_at_once(space) if states else sum(group.numel for group in space.groups))
    widest = max(member.num_columns for member in members)
    rounding = max(FLOATS_OF_ROUNDING * m.numel + MATRICES_AGAIN * m.num_columns**2 for m in members)
    summing = activations + 8 * (3 * positions * widest + MATRICES_SUMMED * widest**2)
    return weights + rounded + states + max(8 * rounding, summing)


def rounding_seconds(
    model: nn.Module,
    formats: StoredFormats,
    quantizer: Quantizer,
    positions: int,
    num_passes: float,
    forward_s: float,
) -> float:
    """Seconds of one worker: a walk through the model, Σ x xᵀ, its factor, and the codes of every format.

    Args:
        model: The original.
        formats: What is made of each weight.
        quantizer: How.
        positions: Inputs of a layer in one pass.
        num_passes: Passes over the samples that rounding is fitted on.
        forward_s: Seconds of one.
    """
    middle = sorted(formats, key=lambda member: member.numel)[len(formats) // 2]
    names = [name for name in formats[middle] if name not in quantizer.checkpoints]
    if not names:
        return 0.0
    rows, columns = min(middle.num_rows, TIMED), min(middle.num_columns, TIMED)
    generator = torch.Generator().manual_seed(0)
    x_NK = torch.randn(positions, columns, generator=generator, dtype=torch.float64)
    weight_MK = torch.randn(rows, columns, generator=generator)
    format = FORMATS[names[len(names) // 2]]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sum_s, hessian_KK = timed(lambda: x_NK.T @ x_NK, 1)
        factor_s, factor = timed(lambda: compensation(hessian_KK, quantizer), 1)

        def codes() -> Tensor:
            qparams = choose_qparams(weight_MK, format, quantizer)
            return compensated_codes(weight_MK, factor, qparams, format, quantizer)

        codes_s, _ = timed(codes, 1)
    finally:
        torch.set_num_threads(num_threads)

    def share(member: Member) -> float:
        scale = member.num_columns / columns
        each = codes_s * len(formats[member]) * scale * member.num_rows / rows
        count = num_matrices(model, member)
        seen = num_passes * count * member.active  # by each of its matrices' share of the inputs
        return seen * sum_s * scale**2 + count * factor_s * scale**3 + each

    return num_passes * forward_s + sum(map(share, formats))
