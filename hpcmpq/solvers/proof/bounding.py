"""Bounding one node of the branch and bound: steps, exclusions, and what closes it.

Axis letters: P options, G groups.
"""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from hpcmpq.problem import ProofLine
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.proof.enumerate import exhaust
from hpcmpq.solvers.proof.exclusion import exclude
from hpcmpq.solvers.proof.incumbent import Incumbent
from hpcmpq.solvers.proof.node import Node, advance, shrink
from hpcmpq.solvers.proof.record import ProofRecord
from hpcmpq.solvers.search.tabu import polish, search
from hpcmpq.solvers.valid_bound import lowered


@dataclass(frozen=True)
class NodePlace:
    """A node's place in the tree, as it was when its bounding began.

    Attributes:
        number: 1 is the whole problem.
        parent_bound: What its parent proved of it, in the root's compact objective.
        others: The least that was proven of any other open node.
    """

    number: int
    parent_bound: float
    others: float


@dataclass(frozen=True)
class Pace:
    """When a node is looked at, and when it has stalled.

    Attributes:
        steps: Between two certificates, once it has made thirty.
        marks: Certificates that are looked back.
        share: Of the gap that they must close for the node to go on.
    """

    steps: int
    marks: int
    share: float


WHOLE_PACE, PART_PACE = Pace(25, 4, 0.15), Pace(50, 2, 0.25)
"""Of the whole problem, whose exclusions all parts inherit, and of its parts."""


@dataclass
class Bounding:
    """Bounds the nodes of one proof, several at a time in threads.

    Attributes:
        root: The compact problem.
        shift: Its original objective where the compact one is zero.
        incumbent: The best choice so far.
        deadline: In `time.perf_counter` seconds.
        seed: Of the searches from rounded relaxations.
        record: Receives a line for every certificate.
        proven: The most that was proven of the whole problem, in the compact objective.
        ended: Set where whatever ends the proof need not wait for its nodes.
        lock: Held while the incumbent, the record or `proven` changes.
        not_exhausted: Options and gap of every node whose choices were too many to exhaust.
        exhausting: Held while a node is exhausted: one at a time keeps the memory that is allowed for it.
    """

    root: Compact
    shift: float
    incumbent: Incumbent
    deadline: float
    seed: int
    record: ProofRecord
    proven: float = -np.inf
    not_exhausted: list[tuple[int, float]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    exhausting: threading.Lock = field(default_factory=threading.Lock)

    def offset(self, compact: Compact) -> float:
        """What to add to a node's objective to get the root's."""
        return (compact.constant - self.shift) / self.root.scale

    def note(self, node: Node, place: NodePlace, bound: float, options: int) -> None:
        """A line of the record."""
        with self.lock:
            self.proven = max(self.proven, min(bound, place.others, self.incumbent.cutoff))
            line = ProofLine(
                time.perf_counter() - self.record.begun,
                place.number,
                node.state.steps,
                node.step_s,
                node.relaxation.lift.dimension,
                node.state.rank,
                options,
                self.root.original_objective(bound),
                self.root.original_objective(self.incumbent.objective),
                self.root.original_objective(min(self.proven, self.incumbent.objective)),
            )
            self.record.lines.append(line)

    def process(self, node: Node, place: NodePlace) -> tuple[Node, float] | None:
        """Bound a node until it closes (None) or stalls (the shrunk node and its bound)."""
        node.state.part_s = defaultdict(float)
        try:
            return self.bounded(node, place)
        finally:
            with self.lock:
                for part, seconds in node.state.part_s.items():
                    self.record.part_s[part] += seconds

    def bounded(self, node: Node, place: NodePlace) -> tuple[Node, float] | None:
        """`process` without its account of seconds."""
        bound, is_root = place.parent_bound, place.number == 1
        pace = WHOLE_PACE if is_root else PART_PACE
        marks: list[float] = []
        while True:
            add = self.offset(node.compact)
            chunk = 10 if node.state.steps < 30 else pace.steps
            done = advance(node, chunk, self.deadline, self.ended)
            if done == 0:
                return node, bound
            bound = max(bound, node.bound + add)
            if is_root and not marks:  # nothing is excluded yet: it holds for the incumbent too
                lowered(bound, self.incumbent.objective, self.incumbent.size)
            marks.append(bound)
            if bound >= self.incumbent.cutoff:
                self.note(node, place, bound, int(np.diagonal(node.allowed_PP).sum()))
                return None
            remaining = exclude(node, self.incumbent.cutoff - add)
            if remaining == 0:
                self.note(node, place, bound, 0)
                return None
            if is_root:
                self.round(node)
            gap = self.incumbent.objective - bound
            self.note(node, place, bound, remaining)
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
            if len(marks) > pace.marks and marks[-1] - marks[-1 - pace.marks] < pace.share * gap:
                if self.finish(node):
                    return None
                left_s = self.deadline - time.perf_counter()
                if node.compact.num_groups <= BRANCH_GROUPS or left_s > BRANCH_STEPS * node.step_s:
                    return node, bound

    def small(self, node: Node, keep_P: np.ndarray) -> bool:
        """Whether the options left could be enumerated, and some are gone."""
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
        room = self.incumbent.cutoff - add - value
        if any(
            ALIKE * alive_P.sum() >= options and ALIKE * room >= least
            for options, least in self.not_exhausted
        ):
            return False
        own_P = np.where(alive_P, own_P, np.inf)
        pair_PP = np.where(node.allowed_PP, pair_PP, np.inf)
        for start, stop in zip(compact.offset_H[:-1], compact.offset_H[1:], strict=True):
            pair_PP[start:stop, start:stop] = 0.0
        with self.exhausting:
            begun = time.perf_counter()
            limit = min(self.deadline, begun + max(0.5, 40 * node.step_s))
            done, choice_G, _ = exhaust(
                compact, value, own_P, pair_PP, self.incumbent.cutoff - add, max_nodes=400_000, deadline=limit
            )
            node.state.part_s["exhaustion"] += time.perf_counter() - begun
        if choice_G is not None:
            self.offer(compact, choice_G)
        if not done:
            self.not_exhausted.append((int(alive_P.sum()), room))
        return done

    def offer(self, compact: Compact, choice_G: np.ndarray) -> None:
        """Take a node's choice as incumbent if it is feasible and better."""
        objective = compact.objective(choice_G) + self.offset(compact)
        if compact.feasible(choice_G):
            with self.lock:
                if objective < self.incumbent.objective:
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


ALIKE = 1.15
"""A node is not exhausted whose options and gap, times this, are at least those of one that could not be."""

BRANCH_GROUPS, BRANCH_STEPS = 120, 2000
"""A node of more groups is split only where time for so many steps is left: few nodes gain less than those steps."""
