"""Runs of a whole model, part by part under a clock, with kernels chosen per group.

A part is timed where it stands, between the parts before and behind it, so that caches hold what they would.
"""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from hpcmpq.errors import UserError
from hpcmpq.formats import Quantizer
from hpcmpq.space import SearchSpace
from hpcmpq.timing.combinations import Combinations, choose_combinations
from hpcmpq.timing.kernels import FormatKernel, NoKernel, Operation, find_kernel
from hpcmpq.timing.subgraphs import SubGraph, Trace, partition, trace_model
from hpcmpq.timing.subgraphs.pieces import Piece, activations, build_piece, signature

MAX_PASSES = 4
"""Passes until none was interrupted by other processes."""

CLOCK = time.perf_counter
"""Reads seconds."""

ORIGINAL = ""
"""Stands for the model's own kernel where a combination names formats."""


@dataclass
class TimedModel:
    """A traced model whose parts can be built with any combination of kernels.

    Attributes:
        trace: Its operations.
        parts: Its sequential parts.
        space: Groups and formats.
        inputs: Of one pass.
        kernels: {(operation, format): kernel, or None for the model's own}.
        refused: {(group, format): why there is no kernel}.
    """

    trace: Trace
    parts: tuple[SubGraph, ...]
    space: SearchSpace
    inputs: dict[str, Tensor]
    kernels: dict[tuple[fx.Node, str], FormatKernel | None]
    refused: dict[tuple[int, str], str]
    _pieces: dict[tuple[int, tuple[str, ...]], Piece] = field(default_factory=dict)

    def piece(self, part: int, formats: tuple[str, ...]) -> Piece:
        """A part with a format for each of its groups, built once."""
        key = (part, formats)
        if key not in self._pieces:
            own = self.parts[part]
            chosen = dict(zip(own.groups, formats, strict=True))
            self._pieces[key] = build_piece(self.trace, own.nodes, self._chosen(own.nodes, chosen))
        return self._pieces[key]

    def whole(self, assignment: Mapping[str, str]) -> Piece:
        """All parts as one, with {group name: format}; other groups run the model's own kernels."""
        names = [group.name for group in self.space.groups]
        chosen = {g: assignment.get(name, ORIGINAL) for g, name in enumerate(names)}
        return build_piece(self.trace, self.trace.nodes, self._chosen(self.trace.nodes, chosen))

    def _chosen(self, nodes: Sequence[fx.Node], formats: Mapping[int, str]) -> dict[fx.Node, FormatKernel]:
        found = {}
        for node in nodes:
            if node in self.trace.uses and formats[self.trace.uses[node][0]] != ORIGINAL:
                kernel = self.kernels[node, formats[self.trace.uses[node][0]]]
                if kernel is not None:
                    found[node] = kernel
        return found

    def formats_with_kernels(self, group: int) -> list[str]:
        """The formats of a group that every operation of it has a kernel for, in option order."""
        return [name for name in self.space.formats[group] if (group, name) not in self.refused]

    def classes(self, limit: int) -> dict[str, tuple[list[int], Combinations]]:
        """{signature: parts that share it, and what is measured of them}, for parts with groups."""
        found: dict[str, tuple[list[int], Combinations]] = {}
        for place, part in enumerate(self.parts):
            if not part.groups:
                continue
            options = [self.formats_with_kernels(group) for group in part.groups]
            key = signature(self.trace, part)
            if key in found:
                found[key][0].append(place)
                continue
            reads = [self._reads(part, group) for group in part.groups]
            shapes = [self._shape(group) for group in part.groups]
            num_formats = max(len(self.space.formats[group]) for group in part.groups)
            found[key] = ([place], choose_combinations(options, reads, shapes, num_formats, limit))
        return found

    def _reads(self, part: SubGraph, group: int) -> tuple[fx.Node, ...]:
        nodes = [node for node in part.nodes if node in self.trace.uses and self.trace.uses[node][0] == group]
        return tuple(dict.fromkeys(source for node in nodes for source in activations(node)))

    def _shape(self, group: int) -> tuple[tuple[int, int], ...]:
        return tuple((m.num_rows, m.num_columns) for m in self.space.groups[group].members)


@torch.no_grad()
def timed_model(
    model: nn.Module, space: SearchSpace, quantizer: Quantizer, inputs: dict[str, Tensor]
) -> TimedModel:
    """The model traced on these inputs, cut into parts, with every kernel that there is.

    Raises:
        UserError: If it cannot be traced, or a group has no kernel in any of its formats.
    """
    trace = trace_model(model, space.groups, inputs)
    kernels: dict[tuple[fx.Node, str], FormatKernel | None] = {}
    refused: dict[tuple[int, str], str] = {}
    for node, (group, use) in trace.uses.items():
        for name in space.formats[group]:
            try:
                kernels[node, name] = find_kernel(Operation(trace, node, use), name, quantizer)
            except NoKernel as reason:
                refused.setdefault((group, name), str(reason))
    timed = TimedModel(trace, partition(trace), space, inputs, kernels, refused)
    for g, searched in enumerate(space.groups):
        if not timed.formats_with_kernels(g):
            reasons = "; ".join(f"{name}: {refused[g, name]}" for name in space.formats[g])
            raise UserError(
                f"no format of {searched.name} has a kernel on this machine ({reasons}); add bf16 or fp32 to formats"
            )
    return timed


class Stopwatch:
    """Times at the boundaries of parts: CUDA events on a GPU, the monotonic clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list = []
        self.switches: list[int] = []

    def mark(self) -> None:
        """Note the time, and how often this process lost its processor to another so far."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(CLOCK())
        self.switches.append(resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw)

    def intervals(self) -> list[tuple[int, float]]:
        """(interruptions, seconds) between consecutive marks."""
        if self.on_gpu:
            torch.cuda.synchronize()
            seconds = [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        else:
            seconds = [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]
        lost = [b - a for a, b in zip(self.switches, self.switches[1:], strict=False)]
        return list(zip(lost, seconds, strict=True))


def time_parts(timed: TimedModel, formats: Sequence[tuple[str, ...]]) -> list[float]:
    """Seconds of every part in one pass, with formats for the groups of each; see `_settled`."""
    return _settled(timed, [timed.piece(part, chosen) for part, chosen in enumerate(formats)])


def time_whole(timed: TimedModel, piece: Piece) -> float:
    """Seconds of one pass of the model as a single piece, see `TimedModel.whole` and `_settled`."""
    return _settled(timed, [piece])[0]


def _settled(timed: TimedModel, pieces: Sequence[Piece]) -> list[float]:
    """Seconds of each piece in the second of two passes: a model in use runs the same code again and again.

    Of a piece that was interrupted by other processes, the least interrupted of at most `MAX_PASSES` passes counts.
    """
    _run(timed, pieces)
    best = _run(timed, pieces)
    for _ in range(MAX_PASSES - 1):
        if not any(lost for lost, _ in best):
            break
        again = _run(timed, pieces)
        best = [new if new[0] < old[0] else old for old, new in zip(best, again, strict=True)]
    return [seconds for _, seconds in best]


@torch.inference_mode()
def _run(timed: TimedModel, pieces: Sequence[Piece]) -> list[tuple[int, float]]:
    values = {node: timed.inputs[name] for name, node in timed.trace.inputs.items()}
    last_reader = {node: place for place, piece in enumerate(pieces) for node in piece.reads}
    done = [[n for n, last in last_reader.items() if last == place] for place in range(len(pieces))]
    watch = Stopwatch(next(iter(timed.inputs.values())).device)
    watch.mark()
    for piece, read in zip(pieces, done, strict=True):
        piece.run(values)
        for node in read:  # as in the whole model, memory is free again once nobody reads it
            del values[node]
        watch.mark()
    return watch.intervals()
