"""Seconds of the parts of a calibration by an engine, each timed alone on one pass, on one thread as workers run."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hpcmpq.formats import FORMATS
from hpcmpq.models.chain.chain import Chain
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.linear_head import LinearHead
from hpcmpq.models.outputs import forward
from hpcmpq.models.weights import as_matrix
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.stored_codes import is_stored
from hpcmpq.quantizers import fake_quantize
from hpcmpq.quantizers.ranges import choose_qparams
from hpcmpq.sensitivity.features import gram
from hpcmpq.sensitivity.probes import make_probes
from hpcmpq.sensitivity.projected_scores import make_projected_score
from hpcmpq.sensitivity.scores import make_score
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace

REPEATS = 3

DISPLACEMENT = 0.02
"""Size of an option's change to the outputs relative to the outputs, for timing: that of a few bits."""

TOGETHER = 8
"""Options that are scored together."""

GRAM_ROWS = 2**12

T = TypeVar("T")


@dataclass(frozen=True)
class PartTimes:
    """Seconds of parts of one pass.

    Attributes:
        forward: The whole model.
        blocks: All that options share up to their block: the blocks of a chain, else everything before the outputs.
        leave: From the last block to what is scored, of one option; 0 where the model is no chain.
        score: Loss and features of one option.
        prepare: What is computed once for all options.
        products: All products of features.
        rounding: Rounding all weights to all formats in known ranges.
        ranges: Choosing all ranges, once a worker.
    """

    forward: float
    blocks: float
    leave: float
    score: float
    prepare: float
    products: float
    rounding: float
    ranges: float


def total_seconds(times: PartTimes, shares: list[float], num_passes: float, keeps_rounded: bool) -> float:
    """Seconds of all passes of one worker.

    Args:
        times: Of the parts of a pass.
        shares: Of the blocks that each option runs.
        num_passes: Passes over the calibration samples.
        keeps_rounded: Whether rounded weights are kept from pass to pass.
    """
    options = sum(share * times.blocks + times.leave + times.score for share in shares)
    each = times.forward + times.prepare + options + times.products
    return num_passes * each + times.rounding * (1 if keeps_rounded else num_passes) + times.ranges


@torch.no_grad()
def time_parts(
    model: nn.Module,
    chain: Chain | None,
    head: LinearHead | None,
    config: Config,
    space: SearchSpace,
    batch: Samples,
    probes: int | None,
) -> PartTimes:
    """Times of one pass's parts; the model is in memory.

    Args:
        model: In eval mode.
        chain: That it is, if any.
        head: Left out of what options run, if any.
        config: Of the run.
        space: Groups and options.
        batch: The samples of a pass.
        probes: Random projections of a token, or None.
    """
    inputs = batch.inputs
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole_s, _ = timed(lambda: forward(model, inputs))
        leave_s = 0.0
        with nullcontext() if head is None else head.left_out():
            if chain is None:
                blocks_s, given = timed(lambda: forward(model, inputs))
            else:
                first, calls = chain.enter(inputs)

                def walk() -> Tensor:
                    state = first
                    for k, call in enumerate(calls):
                        state = chain.run(k, state, call)
                    return state

                blocks_s, last = timed(walk)
                leave_s, given = timed(lambda: chain.leave(inputs, last))
        prepare_s, score_s, num_features = _scoring(head, config, batch, given, probes)
        rounding_s, ranges_s = _rounding(model, config, space)
        rows = min(GRAM_ROWS, num_features)
        phi_PF = torch.randn(space.num_options, rows, dtype=given.dtype, device=given.device)
        gram_s = timed(lambda: gram(phi_PF), 1)[0] * num_features / rows * len(batch)
    finally:
        torch.set_num_threads(num_threads)
    return PartTimes(whole_s, blocks_s, leave_s, score_s, prepare_s, gram_s, rounding_s, ranges_s)


def _scoring(
    head: LinearHead | None, config: Config, batch: Samples, given: Tensor, probes: int | None
) -> tuple[float, float, int]:
    """Seconds once a pass and per option, and features of a sample."""
    displacement = DISPLACEMENT * float(given.std()) * torch.randn_like(given)
    if head is None or probes is None:
        score = make_score(OBJECTIVES[config.objective], given, batch.targets)
        project = make_probes(probes, given, seed=0, first_sample=0)
        score_s, _ = timed(lambda: project(score((given + displacement).sub_(given))[1]))
        return 0.0, score_s, given.shape[1] * (probes or given.shape[2])
    start = cpu_seconds()
    _, projected = make_projected_score(
        head,
        config.objective,
        given,
        batch.targets,
        num_probes=probes,
        loss_positions=config.sensitivity.loss_positions,
        seed=0,
        first_sample=0,
    )
    prepare_s = cpu_seconds() - start
    delta_QNTD = displacement.expand(TOGETHER, *displacement.shape).contiguous()
    return prepare_s, timed(lambda: projected(delta_QNTD))[0] / TOGETHER, given.shape[1] * probes


def _rounding(model: nn.Module, config: Config, space: SearchSpace) -> tuple[float, float]:
    """Seconds of rounding all options and of choosing their ranges, from one weight of middling size."""
    member = sorted((m for group in space.groups for m in group.members), key=lambda m: m.numel)
    names = [name for name in config.formats if not is_stored(name, config.quantizer)]
    if not member or not names:
        return 0.0, 0.0
    middle, format = member[len(member) // 2], FORMATS[names[len(names) // 2]]
    matrix_MK = as_matrix(model.get_parameter(middle.parameter), middle)
    ranges_s, found = timed(lambda: choose_qparams(matrix_MK, format, config.quantizer), 1)
    rounding_s, _ = timed(lambda: fake_quantize(matrix_MK, format, config.quantizer, found))
    pairs = zip(space.groups, space.formats, strict=True)
    numel = sum(group.numel * sum(name in names for name in formats) for group, formats in pairs)
    return rounding_s * numel / matrix_MK.numel(), ranges_s * numel / matrix_MK.numel()


def timed(run: Callable[[], T], repeats: int = REPEATS) -> tuple[float, T]:
    """Median seconds of a run after one that does not count, and what it gives."""
    times = []
    result = run()
    for _ in range(repeats):
        start = cpu_seconds()
        result = run()
        times.append(cpu_seconds() - start)
    return statistics.median(times), result


def cpu_seconds() -> float:
    """Seconds of work: of the processor, so that others on the machine do not count, or until a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.monotonic()
    return time.process_time()
