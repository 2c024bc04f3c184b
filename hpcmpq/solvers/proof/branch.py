"""Branch and bound over restricted problems, best bound first.

Axis letters: P options, G groups.
"""

import heapq
import itertools
import time
from dataclasses import dataclass

import numpy as np

from hpcmpq.problem import ProofLine
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof import convex_start, widening
from hpcmpq.solvers.proof.enumerate import exhaust
from hpcmpq.solvers.proof.incumbent import Incumbent, first_incumbent
from hpcmpq.solvers.proof.node import Node, advance, all_pairs, exclude, make_node, preconditioner, shrink
from hpcmpq.solvers.proof.positive_part import PositivePart, positive_part
from hpcmpq.solvers.proof.record import ProofRecord
from hpcmpq.solvers.search.tabu import polish, search
from hpcmpq.solvers.valid_bound import lowered


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
    proof = _Proof(root, shift, incumbent, deadline, seed, record)
    scale_P = preconditioner(root, choice_G)
    if root.num_options >= convex_start.WORTH_FROM:
        begun = time.perf_counter()
        node = widening.start(root, scale_P, choice_G, seed, deadline, positive_part)
        record.part_s["problems on fewer options"] += time.perf_counter() - begun
    else:
        node = make_node(root, all_pairs(root), scale_P, positive_part)
    node.state.part_s = record.part_s
    bound = proof.run(node)
    return incumbent.choice_G, incumbent.objective, bound


@dataclass
class _Proof:
    root: Compact
    shift: float
    incumbent: Incumbent
    deadline: float
    seed: int
    record: ProofRecord
    nodes: int = 0
    others: float = np.inf

    def offset(self, compact: Compact) -> float:
        """What to add to a node's objective to get the root's."""
        return (compact.constant - self.shift) / self.root.scale

    def run(self, node: Node) -> float:
        counter = itertools.count()
        heap: list[tuple[float, int, Node]] = [(-np.inf, next(counter), node)]
        while heap:
            if time.perf_counter() > self.deadline:
                break
            parent_bound, _, node = heapq.heappop(heap)
            if parent_bound >= self.incumbent.cutoff:
                continue
            self.nodes += 1
            self.others = min((entry[0] for entry in heap), default=np.inf)
            outcome = self.process(node, parent_bound)
            if outcome is None:
                continue
            node, bound = outcome
            late = time.perf_counter() + 4 * node.step_s > self.deadline
            if late or self.record.short_of_memory(node.relaxation.lift.size):
                heapq.heappush(heap, (bound, next(counter), node))
                break
            for child, child_bound in self.children(node, bound):
                heapq.heappush(heap, (child_bound, next(counter), child))
        self.record.open_nodes = len(heap)
        lowest = min((entry[0] for entry in heap), default=np.inf)
        return min(lowest, self.incumbent.cutoff)

    def note(self, node: Node, bound: float, options: int) -> None:
        """A line of the record."""
        proven = min(bound, self.others, self.incumbent.cutoff)
        line = ProofLine(
            time.perf_counter() - self.record.begun,
            self.nodes,
            node.state.steps,
            node.step_s,
            node.relaxation.lift.dimension,
            node.state.rank,
            options,
            self.root.original_objective(bound),
            self.root.original_objective(self.incumbent.objective),
            self.root.original_objective(proven),
        )
        self.record.lines.append(line)

    def process(self, node: Node, parent_bound: float) -> tuple[Node, float] | None:
        """Bound a node until it closes (None) or stalls (the shrunk node and its bound)."""
        bound = parent_bound
        is_root = self.nodes == 1
        marks: list[float] = []
        while True:
            add = self.offset(node.compact)
            chunk = 10 if node.state.steps < 30 else 25
            done = advance(node, chunk, self.deadline)
            if done == 0:
                return node, bound
            bound = max(bound, node.bound + add)
            if is_root and not marks:  # nothing is excluded yet: it holds for the incumbent too
                lowered(bound, self.incumbent.objective, self.incumbent.size)
            marks.append(bound)
            if bound >= self.incumbent.cutoff:
                self.note(node, bound, int(np.diagonal(node.allowed_PP).sum()))
                return None
            remaining = exclude(node, self.incumbent.cutoff - add)
            if remaining == 0:
                self.note(node, bound, 0)
                return None
            if is_root:
                self.round(node)
            gap = self.incumbent.objective - bound
            self.note(node, bound, remaining)
            keep_P = np.diagonal(node.allowed_PP).copy()
            if remaining < 0.93 * node.compact.num_options or self.small(node, keep_P):
                smaller = shrink(node, keep_P)
                if smaller is None:
                    return None
                if isinstance(smaller, Compact):
                    self.offer(smaller, np.zeros(0, dtype=np.int64))
                    return None
                node = smaller
                if self.finish(node):
                    return None
                continue
            window = 3 if not is_root else 4
            if len(marks) > window and marks[-1] - marks[-1 - window] < 0.15 * gap:
                if self.finish(node):
                    return None
                if node.compact.num_groups <= BRANCH_GROUPS:
                    return node, bound

    def small(self, node: Node, keep_P: np.ndarray) -> bool:
        count_G = np.add.reduceat(keep_P.astype(int), node.compact.offset_H[:-1])
        return float(np.log(count_G).sum()) < np.log(2e4) and len(keep_P) > keep_P.sum()

    def finish(self, node: Node) -> bool:
        """Try to exhaust the node with its certificate."""
        if node.compact.num_options > 600:
            return False
        certificate = node.last
        compact, lift = node.compact, node.relaxation.lift
        add = self.offset(compact)
        if certificate is None or not np.isfinite(certificate.value):
            value, own_P = -1e30, np.zeros(compact.num_options)
            pair_PP = np.zeros_like(node.allowed_PP, dtype=float)
            space = float(np.log(np.diff(compact.offset_H)).sum())
            if space > np.log(5e4):
                return False
        else:
            columns = lift.column_P
            value = certificate.value
            own_P = certificate.minimum.own_X[columns]
            pair_PP = certificate.minimum.pair_XX[np.ix_(columns, columns)]
        alive_P = np.diagonal(node.allowed_PP)
        own_P = np.where(alive_P, own_P, np.inf)
        pair_PP = np.where(node.allowed_PP, pair_PP, np.inf)
        for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
            pair_PP[start:stop, start:stop] = 0.0
        begun = time.perf_counter()
        limit = min(self.deadline, begun + max(0.5, 40 * node.step_s))
        done, choice_G, _ = exhaust(
            compact, value, own_P, pair_PP, self.incumbent.cutoff - add, max_nodes=400_000, deadline=limit
        )
        if choice_G is not None:
            self.offer(compact, choice_G)
        self.record.part_s["exhaustion"] += time.perf_counter() - begun
        return done

    def offer(self, compact: Compact, choice_G: np.ndarray) -> None:
        """Take a node's choice as incumbent if it is feasible and better."""
        objective = compact.objective(choice_G) + self.offset(compact)
        if objective < self.incumbent.objective and compact.feasible(choice_G):
            self.incumbent.choice_G, self.incumbent.objective = compact.expand(choice_G), objective

    def round(self, node: Node) -> None:
        """Search from the relaxation's most likely options."""
        likely_P = np.where(np.diagonal(node.allowed_PP), node.likely_P(), -1.0)
        compact = node.compact
        order = np.lexsort((-likely_P, compact.group_P))
        hint_G = order[compact.offset_H[:-1]]
        budget_s = min(5 * node.step_s, 0.5)
        found = search(
            compact,
            deadline=min(self.deadline, time.perf_counter() + budget_s),
            seed=self.seed,
            hint_G=hint_G,
            rounds=0,
        )
        if found is not None:
            walked, _ = polish(compact, found, self.seed, min(self.deadline, time.perf_counter() + budget_s))
            self.offer(compact, walked[0])

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
                self.offer(child, np.zeros(0, dtype=np.int64))
            elif child is not None:
                child.bound = -np.inf
                result.append((child, bound))
        return result


BRANCH_GROUPS = 120
"""Above, more steps at the root pay better than branching."""
