"""`quadratic`: search and proven bound for the full model.

docs/solver.md describes the method; `branch.prove` is the proof, `tabu.search` the search.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from hpcmpq.cross_terms import any_entry, is_sparse
from hpcmpq.problem import Problem, Solution, Termination
from hpcmpq.solvers.answer import find_feasible, prepare, solution
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.cp_sat.integer import solve_linear
from hpcmpq.solvers.memory import Room, convex_bytes, lifted_bytes, room
from hpcmpq.solvers.proof.blocks import block_bound
from hpcmpq.solvers.proof.branch import prove
from hpcmpq.solvers.proof.gilmore_lawler import full_bound
from hpcmpq.solvers.proof.node import STEP_COST_S
from hpcmpq.solvers.proof.positive_part import PositivePart, positive_part
from hpcmpq.solvers.proof.record import ProofRecord, limited_by
from hpcmpq.solvers.proof.spectral import spectral_bound
from hpcmpq.solvers.search.tabu import search

LARGEST_LIFT = 6000
"""Options up to which the doubly nonnegative relaxation fits into memory and time."""


@dataclass(frozen=True)
class QuadraticSolver:
    """Tabu search for the assignment, doubly nonnegative relaxation and branch and bound for the proof.

    Attributes:
        positive_part: What decomposes the relaxation's matrices.
    """

    positive_part: PositivePart = positive_part

    def solve(
        self, problem: Problem, *, time_limit_s: float, seed: int, hint_G: np.ndarray | None = None
    ) -> Solution:
        """The best assignment found, with a proven bound.

        Raises:
            ValueError: If the problem is malformed (see `presolve.validate`).
        """
        started = time.perf_counter()
        compact = prepare(problem, started, time_limit_s)
        if isinstance(compact, Solution):
            return compact
        needed, memory = lifted_bytes(compact.num_groups, int(compact.size_G.max())), room()
        small = compact.num_options <= LARGEST_LIFT and needed <= memory.bytes
        if is_sparse(compact.quad_PP) and small:
            compact = replace(compact, quad_PP=compact.quad_PP.toarray())
        deadline = started + time_limit_s
        hint, bound = None if hint_G is None else compact.compress(hint_G), -np.inf
        if not any_entry(compact.quad_PP):
            linear = solve_linear(
                compact, compact.linear_P, time_limit_s=deadline - time.perf_counter(), seed=seed, hint_G=hint
            )
            if linear.choice_G is not None:
                hint, bound = linear.choice_G, linear.bound
                known = compact.original_objective(bound)
                closed = solution(problem, compact.expand(hint), known, started, timed_out=True)
                if (
                    closed.termination is Termination.OPTIMAL
                    or time.perf_counter() > deadline - 0.05 * time_limit_s
                ):
                    return closed
        found = search(
            compact,
            deadline=started + search_seconds(time_limit_s),
            seed=seed,
            hint_G=hint,
        )
        if found is None:
            feasible = find_feasible(problem, compact, started, time_limit_s, seed)
            if isinstance(feasible, Solution):
                return feasible
            until = time.perf_counter() + search_seconds(max(0.0, deadline - time.perf_counter()))
            found = search(compact, deadline=until, seed=seed, hint_G=feasible)
            found = found or (feasible, compact.objective(feasible))
        part_s = {"search": time.perf_counter() - started}
        bound, record = max(bound, full_bound(compact)), None
        left_s, first_s = deadline - time.perf_counter(), first_bound_s(compact)
        lifted = small and left_s > 2.0 * first_s
        if small and not lifted:  # too little time for the proof: search on
            again = search(compact, deadline=started + 0.6 * time_limit_s, seed=seed + 1, hint_G=found[0])
            found = min(found, again or found, key=lambda one: one[1])
        if not lifted or left_s < 4.0 * first_s:
            until = deadline - 0.05 * time_limit_s
            if lifted:  # a quick bound in case that the relaxation gets few steps
                until = time.perf_counter() + 0.15 * left_s
            begun, name = time.perf_counter(), "bound by least cross terms"
            if is_sparse(compact.quad_PP):
                bound, name = max(bound, block_bound(compact, found[0], until)), "bound by blocks"
            elif convex_bytes(compact.num_options) <= memory.bytes:
                bound, name = max(bound, spectral_bound(compact, found[0], until, seed)), "convex bound"
            part_s[name] = time.perf_counter() - begun
        choice_G = compact.expand(found[0])
        if lifted:
            record = ProofRecord()
            choice_G, _, proven = prove(compact, found[0], deadline, seed, record, self.positive_part)
            bound = max(bound, proven)
        timed_out = small or time.perf_counter() > deadline - 0.05 * time_limit_s
        answer = solution(problem, choice_G, compact.original_objective(bound), started, timed_out=timed_out)
        if record is not None:
            part_s.update(record.part_s)
        if answer.termination is not Termination.OPTIMAL:
            detail = (
                limited_by(record)
                if record is not None
                else too_large(name, needed, memory, small, time_limit_s)
            )
            answer = replace(answer, detail=detail)
        return replace(answer, proof=() if record is None else tuple(record.lines), part_s=part_s)


def first_bound_s(compact: Compact) -> float:
    """About the seconds in which the relaxation starts and gives its first useful bound; little for small problems."""
    dimension = 1 + compact.num_options - compact.num_groups
    return FIRST_STEPS * STEP_COST_S * float(dimension) ** 3


def too_large(name: str, needed: float, memory: Room, fits: bool, time_limit_s: float) -> str:
    """Why there is no more than a cheaper bound: the relaxation's bytes and those that are left, or the time."""
    if fits:
        return f"{time_limit_s:g} s leave no room for the relaxation, and so for no more than a {name}"
    sentence = f"the problem is too large for more than a {name}"
    if needed <= memory.bytes:
        return sentence
    return (
        f"{sentence}: the relaxation would take {needed / 1e9:.2g} GB, and {memory.limit} leaves "
        f"{memory.bytes / 1e9:.2g}"
    )


FIRST_STEPS = 10.0
"""Steps that starting the relaxation and its first bound cost."""


def search_seconds(time_limit_s: float) -> float:
    """Most seconds of the search before the proof starts: a fifth of a short limit, 5 % of a long one and 1 s."""
    return min(0.2 * time_limit_s, 1.0 + 0.05 * time_limit_s)
