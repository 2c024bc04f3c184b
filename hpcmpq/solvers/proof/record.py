"""What a proof did: a line for every certificate, the seconds of its parts, and which of them limits it."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from hpcmpq.problem import ProofLine
from hpcmpq.solvers.memory import matrices_bytes, room


@dataclass
class ProofRecord:
    """A proof's account, filled while it runs.

    Attributes:
        begun: When it began, in `time.perf_counter` seconds.
        lines: One for every certificate.
        part_s: Seconds by part.
        open_nodes: Nodes that were left when it ended.
        memory_limit: What left no memory for two more nodes, and so ended it; empty where nothing did.
    """

    begun: float = field(default_factory=time.perf_counter)
    lines: list[ProofLine] = field(default_factory=list)
    part_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    open_nodes: int = 0
    memory_limit: str = ""

    def short_of_memory(self, size: int, side_by_side: int) -> bool:
        """Whether two nodes of so many lifted coordinates, and a certificate, for each of those that are bounded
        side by side, might not fit any more.
        """
        left = room()
        if left.bytes < NODES_AHEAD * matrices_bytes(size, side_by_side):
            self.memory_limit = left.limit
        return bool(self.memory_limit)


def limited_by(record: ProofRecord) -> str:
    """One sentence: the time of a step, the number of steps, the relaxation itself, or branching.

    Example:
        >>> lines = [ProofLine(9.0, 1, 10 * k, 0.3, 99, 9, 99, 0.5 * k, 4.0, 0.5 * k) for k in (1, 2, 3)]
        >>> limited_by(ProofRecord(0.0, lines))
        'the number of steps limits the proof: the last 10 closed 16.7 % of the gap'
    """
    if not record.lines:
        return "no time was left for a step of the proof"
    # Of nodes side by side the first may end last.
    last = max(reversed(record.lines), key=lambda line: line.node)
    if record.memory_limit:
        nodes = f"{last.node} node{'s' * (last.node > 1)}"
        return f"the memory limits the proof: {record.memory_limit} leaves no room for more than {nodes}"
    if last.node > 1:
        root = [line for line in record.lines if line.node == 1][-1]
        return (
            f"branching limits the proof: {last.node} nodes were bounded and {record.open_nodes} are open; the whole "
            f"problem alone left {100 * root.gap:.3g} %"
        )
    if last.steps < FEW_STEPS and last.step_s > SLOW_STEP_S:
        largest = max(record.part_s, key=lambda part: record.part_s[part])
        share = record.part_s[largest] / sum(record.part_s.values())
        return (
            f"the time of a step limits the proof: {last.steps} steps of {last.step_s:.2g} s, "
            f"{100 * share:.0f} % of all for the {largest}"
        )
    closed, steps = 0.0, last.steps
    if len(record.lines) > 1:
        before = record.lines[-2]
        steps = last.steps - before.steps
        closed = (last.bound - before.bound) / max(last.objective - before.bound, 1e-300)
    part = "number of steps" if closed > STALLED else "relaxation"
    return f"the {part} limits the proof: the last {steps} closed {100 * closed:.3g} % of the gap"


NODES_AHEAD = 3
"""Nodes that must fit before one is split: its two parts, and what bounding one of them takes on the way."""

FEW_STEPS = 100
"""Steps under which a relaxation is far from its value."""

SLOW_STEP_S = 0.5
"""Seconds from which a step is said to limit where few were done."""

STALLED = 0.02
"""Share of the gap that 10 to 25 steps close at least where more steps would help."""
