"""Every solver's answers and every bound on small random instances, against enumeration that shares no code with them.

    python -m bench.fuzz                     2,000 instances; writes section `fuzz` of bench/RESULTS.md
    python -m bench.fuzz --instances 200     fewer, printed only
    python -m bench.fuzz --first 7 --instances 1 --no-write   one again, with what is wrong

Instances mix ties over different lists of formats, forbidden options, up to three budgets, joint tables with and
without infinite entries, cross terms of either sign or both from none to as large as the losses, limits that an
assignment meets to the last digit, constants that the options cancel, losses from 1e-12 to 1e6, and time limits
down to two milliseconds.
"""

import argparse
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse

from bench.results import table, write_section
from bench.small_instances import Instance, faults, least, random_instance
from hpcmpq.problem import Solution
from hpcmpq.solvers import Solver, make_solver
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.diagonal import DiagonalSolver
from hpcmpq.solvers.greedy import GreedySolver
from hpcmpq.solvers.linear import LinearSolver
from hpcmpq.solvers.proof import widening
from hpcmpq.solvers.proof.blocks import block_bound
from hpcmpq.solvers.proof.convex_start import start
from hpcmpq.solvers.proof.gilmore_lawler import full_bound
from hpcmpq.solvers.proof.node import advance, all_pairs, make_node, preconditioner
from hpcmpq.solvers.proof.spectral import spectral_bound

SOLVERS: dict[str, Solver] = {
    "quadratic": make_solver("quadratic"),
    "linear, ip": LinearSolver(form="ip"),
    "linear, lp": LinearSolver(form="lp"),
    "diagonal": DiagonalSolver(drop_cross_terms=True),
    "greedy": GreedySolver(drop_cross_terms=True),
    "exhaustive": make_solver("exhaustive"),
}

LIMITS_S = (10.0, 10.0, 1.0, 0.05, 0.01, 0.002)
"""Time limits that are drawn from."""

BOUNDS: dict[str, Callable[[Compact, np.ndarray], float]] = {
    "bound: Gilmore-Lawler": lambda compact, choice_G: full_bound(compact),
    "bound: convex form, one number": lambda compact, choice_G: spectral_bound(
        compact, choice_G, np.inf, 0, 0
    ),
    "bound: convex form, blocks after 12 steps": lambda compact, choice_G: spectral_bound(
        compact, choice_G, np.inf, 0, 12
    ),
    "bound: blocks of a group or two": lambda compact, choice_G: blocks_bound(compact, choice_G),
    "bound: relaxation, 3 steps": lambda compact, choice_G: relaxation_bound(compact, choice_G, 3),
    "bound: relaxation, 20 steps": lambda compact, choice_G: relaxation_bound(compact, choice_G, 20),
    "bound: relaxation from a convex form, 5 steps": lambda compact, choice_G: relaxation_bound(
        compact, choice_G, 5, from_convex=True
    ),
    "bound: relaxation widened from fewer options, 3 steps": lambda compact, choice_G: widened_bound(
        compact, choice_G, 3
    ),
}
"""Bounds on the compact objective, each from the instance and a good choice."""


def blocks_bound(compact: Compact, choice_G: np.ndarray) -> float:
    """The bound of sparse cross terms from blocks of at most one group and of at most two, the larger one."""
    sparse = replace(compact, quad_PP=scipy.sparse.csr_array(compact.quad_PP))
    return max(block_bound(sparse, choice_G, np.inf, largest, 3) for largest in (1, 2))


def relaxation_bound(compact: Compact, choice_G: np.ndarray, steps: int, from_convex: bool = False) -> float:
    """The doubly nonnegative relaxation's certificate after some steps, from a cold start or a convex form."""
    node = make_node(compact, all_pairs(compact), preconditioner(compact, choice_G))
    if from_convex:
        node.state = start(compact, node.relaxation, node.projector, node.state, choice_G, 0, np.inf)
    advance(node, steps, np.inf)
    return node.bound


def widened_bound(compact: Compact, choice_G: np.ndarray, steps: int) -> float:
    """The doubly nonnegative relaxation's certificate after some steps from the multiplier of fewer options a group."""
    node = widening.start(compact, preconditioner(compact, choice_G), choice_G, 0, np.inf)
    advance(node, steps, np.inf)
    return node.bound


def check(name: str, instance: Instance, seed: int) -> tuple[Solution | None, list[str]] | None:
    """A solver's answer, or None for a bound, and what is wrong with it; None where there is nothing to bound."""
    best, problem = least(instance), instance.problem()
    if name in SOLVERS:
        limit_s = LIMITS_S[seed % len(LIMITS_S)]
        answer = SOLVERS[name].solve(problem, time_limit_s=limit_s, seed=seed)
        return answer, faults(instance, answer, best)
    compact = presolve(problem)
    if best is None or not isinstance(compact, Compact) or compact.num_groups == 0:
        return None
    choice_G = compact.compress(instance.choice(best[1]))
    if choice_G is None:
        return None, ["optimum removed"]
    bound = compact.original_objective(BOUNDS[name](compact, choice_G))
    size = sum(map(abs, instance.terms(best[1])))
    wrong = [] if bound <= best[0] + 1e-12 * size else ["invalid bound"]
    return None, wrong + ([] if np.isfinite(bound) else ["no bound"])


def run(first: int, count: int, workers: int, say: Callable[[str], None]) -> list[list[object]]:
    """The rows of the table."""
    rows: list[list[object]] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for name in (*SOLVERS, *BOUNDS):
            tasks = [(name, seed) for seed in range(first, first + count)]
            total: Counter[str] = Counter()
            spent = 0.0
            for counts, seconds, sentences in pool.imap(_checked, tasks, chunksize=20):
                total.update(counts)
                spent += seconds
                for sentence in sentences:
                    say(sentence)
            known = ("answers", "optimal", "bounds", "invalid bound", "false optimal")
            others = total.total() - sum(total[key] for key in known)
            cells = (total["answers"], total["optimal"]) if name in SOLVERS else ("", "")
            wrong = total["invalid bound"], total["false optimal"], others
            rows.append([name, *cells, total["bounds"], *wrong, f"{spent:.0f}"])
            say(" | ".join(map(str, rows[-1])))
    return rows


def _checked(task: tuple[str, int]) -> tuple[Counter[str], float, list[str]]:
    """What a solver or bound did on one instance, counted; CPU seconds; and what is wrong with it in words."""
    name, seed = task
    instance, begun = random_instance(seed), time.process_time()
    counts: Counter[str] = Counter()
    sentences = []
    try:
        checked = check(name, instance, seed)
        if checked is None:
            return counts, 0.0, []
        answer, found = checked
        counts["answers"] += answer is not None and answer.choice_G is not None
        counts["optimal"] += answer is not None and answer.termination.value == "optimal"
        counts["bounds"] += "no bound" not in found if answer is None else answer.bound is not None
    except Exception as error:  # counted as a fault, and said
        found = [f"raised {type(error).__name__}"]
        sentences.append(f"{name}, seed {seed}: {error}")
    counts.update(found)
    if found:
        sentences.append(f"{name}, seed {seed}: {', '.join(found)}")
    return counts, time.process_time() - begun, sentences


HEADER = (
    "solver or bound",
    "answers",
    "called optimal",
    "bounds",
    "invalid bounds",
    "falsely optimal",
    "other faults",
    "CPU seconds",
)


def main() -> None:
    """Parse, check, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="seed of the first instance")
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    rows = run(arguments.first, arguments.instances, arguments.workers, lambda text: print(text, flush=True))
    result = table(HEADER, rows)
    print(result)
    if arguments.instances >= 2000 and not arguments.no_write:
        feasible = sum(least(random_instance(s)) is not None for s in range(arguments.instances))
        write_section(
            "fuzz",
            "## Bounds and claims on small instances\n\n`python -m bench.fuzz`: "
            f"{arguments.instances} random instances, {feasible} of them feasible, every answer and bound against "
            "enumeration.\nOther faults are broken budgets, ties or rules, objectives that are not the "
            f"assignment's, feasible instances called infeasible, and errors.\n\n{result}",
        )


if __name__ == "__main__":
    main()
