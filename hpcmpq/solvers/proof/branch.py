"""Branch and bound over restricted problems, best bound first.

Axis letters: P options, G groups.
"""

import heapq
import itertools
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import numpy as np

from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.memory import matrices_bytes, nodes_bytes
from hpcmpq.solvers.proof import convex_start, widening
from hpcmpq.solvers.proof.bounding import Bounding, NodePlace
from hpcmpq.solvers.proof.incumbent import first_incumbent
from hpcmpq.solvers.proof.node import Node, all_pairs, make_node, out_of_time, preconditioner, shrink
from hpcmpq.solvers.proof.positive_part import PositivePart, positive_part
from hpcmpq.solvers.proof.record import ProofRecord
from hpcmpq.solvers.proof.threads import node_pool, one_blas_thread, threads_of


def prove(
    root: Compact,
    choice_G: np.ndarray,
    deadline: float,
    seed: int,
    record: ProofRecord,
    positive_part: PositivePart = positive_part,
) -> tuple[np.ndarray, float, float]:
    """(best original choice, its root-compact objective, proven bound in the same unit) until the deadline.

    Args:
        root: The compact problem.
        choice_G: A feasible compact choice.
        deadline: In `time.perf_counter` seconds.
        seed: Of the searches from rounded relaxations.
        record: Receives a line for every certificate, and the seconds.
        positive_part: What decomposes the relaxation's matrices.
    """
    shift = root.original_objective(0.0)
    incumbent = first_incumbent(root, choice_G)
    scale_P = preconditioner(root, choice_G)
    with one_blas_thread():
        if root.num_options >= convex_start.WORTH_FROM:
            begun = time.perf_counter()
            node = widening.start(root, scale_P, choice_G, seed, deadline, positive_part)
            record.part_s["problems on fewer options"] += time.perf_counter() - begun
        else:
            node = make_node(root, all_pairs(root), scale_P, positive_part)
        bound = _Tree(Bounding(root, shift, incumbent, deadline, seed, record)).run(node)
    return incumbent.choice_G, incumbent.objective, bound


@dataclass
class _Tree:
    """The open nodes; those that are small are bounded side by side, a thread and a core each.

    Attributes:
        bounding: What bounds them.
        heap: Bound, place in line and node of those that wait.
        running: Bound of those that are being bounded.
        pushed: Places in line.
        side_by_side: Nodes that are bounded at a time.
    """

    bounding: Bounding
    heap: list[tuple[float, int, Node]] = field(default_factory=list)
    running: dict["Future[tuple[Node, float] | None]", float] = field(default_factory=dict)
    pushed: "itertools.count[int]" = field(default_factory=itertools.count)
    side_by_side: int = 1

    def run(self, root: Node) -> float:
        bounding, record = self.bounding, self.bounding.record
        numbers = itertools.count(1)
        outcome = bounding.process(root, NodePlace(next(numbers), -np.inf, np.inf))
        if outcome is None:
            return bounding.incumbent.cutoff
        lift = outcome[0].relaxation.lift
        self.side_by_side = threads_of(lift.dimension)
        kept = nodes_bytes(bounding.root.num_groups, int(bounding.root.size_G.max()))
        while self.side_by_side > 1 and matrices_bytes(lift.size, self.side_by_side) > kept:
            self.side_by_side -= 1
        stopped = self.take(*outcome)
        with node_pool(self.side_by_side) as pool:
            try:
                while self.running or (self.heap and not stopped):
                    while self.heap and len(self.running) < self.side_by_side and not stopped:
                        bound, _, node = heapq.heappop(self.heap)
                        if bound < bounding.incumbent.cutoff:
                            place = NodePlace(next(numbers), bound, self.lowest())
                            self.running[pool.submit(bounding.process, node, place)] = bound
                    for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                        del self.running[future]
                        if (outcome := future.result()) is not None:
                            stopped = self.take(*outcome) or stopped
            except BaseException:
                bounding.ended.set()  # whatever ends the proof need not wait for the other nodes
                raise
        record.open_nodes = len(self.heap)
        return min(self.lowest(), bounding.incumbent.cutoff)

    def take(self, node: Node, bound: float) -> bool:
        """Split a node that stalled; whether time or memory ends the proof, and the node is kept instead."""
        stopped = out_of_time(node, self.bounding.deadline)
        stopped = stopped or self.bounding.record.short_of_memory(
            node.relaxation.lift.size, self.side_by_side
        )
        for one, least in [(node, bound)] if stopped else self.children(node, bound):
            heapq.heappush(self.heap, (least, next(self.pushed), one))
        return stopped

    def lowest(self) -> float:
        """The least that is proven of an open node."""
        return min(itertools.chain((entry[0] for entry in self.heap), self.running.values()), default=np.inf)

    def children(self, node: Node, bound: float) -> list[tuple[Node, float]]:
        """Two nodes that split one group's options at the middle of its distribution."""
        compact, alive_P = node.compact, np.diagonal(node.allowed_PP)
        likely_P = np.where(alive_P, node.likely_P(), 0.0)
        strength_P = np.sqrt((compact.quad_PP**2).sum(axis=1)) + np.abs(compact.linear_P)
        starts = compact.offset_H[:-1]
        mean_G = np.add.reduceat(likely_P * strength_P, starts)
        spread_G = np.add.reduceat(likely_P * (strength_P - mean_G[compact.group_P]) ** 2, starts)
        uncertain_G = 1.0 - np.maximum.reduceat(likely_P, starts)
        count_G = np.add.reduceat(alive_P.astype(int), starts)
        score_G = np.where(
            count_G > 1, (np.sqrt(np.maximum(spread_G, 0)) + 1e-9) * (uncertain_G + 1e-3), -1.0
        )
        group = int(np.argmax(score_G))
        start, stop = int(starts[group]), int(compact.offset_H[group + 1])
        options = start + np.flatnonzero(alive_P[start:stop])
        mass = np.cumsum(likely_P[options])
        cut = int(np.clip(np.searchsorted(mass, 0.5 * mass[-1]) + 1, 1, len(options) - 1))
        if cut > 1 and abs(mass[cut - 2] - 0.5 * mass[-1]) < abs(mass[cut - 1] - 0.5 * mass[-1]):
            cut -= 1
        result = []
        for side in (options[:cut], options[cut:]):
            keep_P = alive_P.copy()
            keep_P[start:stop] = False
            keep_P[side] = True
            child = shrink(node, keep_P)
            if isinstance(child, Compact):
                self.bounding.offer(child, np.zeros(0, dtype=np.int64))
            elif child is not None:
                child.bound = -np.inf
                result.append((child, bound))
        return result
