"""The solver beside plain CP-SAT and the diagonal knapsack, on synthetic and measured quadratics.

    python -m bench.solver                 about 30 minutes; writes section `solver` of bench/RESULTS.md
    python -m bench.solver --groups 20 54  only these sizes; other rows of the section stay as they are
    python -m bench.solver --full          every coherence, curvature and number of bits
    python -m bench.solver --runs runs/a b.npz   adds quadratics measured in run directories, or kept as numpy files

Every solve is a process of its own, so that peak memory is that solve's. The search column is the search
alone after 5 s (30 s from 560 groups on), as its distance from the best objective that any method found.
CP-SAT gets the seconds that ours took, and at least 5; with --cp-sat-s at most so many.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.instances import COHERENCE, Shape, make_blocked_instance, make_instance, measured_instance
from bench.results import ROOT, read_section, table, write_section
from hpcmpq.errors import UserError
from hpcmpq.problem import Problem, Solution
from hpcmpq.solvers import Solver
from hpcmpq.solvers.compact.compact import Compact
from hpcmpq.solvers.compact.presolve import presolve
from hpcmpq.solvers.diagonal import DiagonalSolver
from hpcmpq.solvers.exhaustive import ExhaustiveSolver
from hpcmpq.solvers.linear import LinearSolver
from hpcmpq.solvers.quadratic import QuadraticSolver
from hpcmpq.solvers.search.tabu import search

BLOCK = 60
"""Groups of a block."""


@dataclass(frozen=True)
class Case:
    """One row: a synthetic shape, blocks of groups, or a measured quadratic (a run directory or .npz) and its bits."""

    name: str
    limit_s: float
    shape: Shape | None = None
    run: str = ""
    bits: float = 0.0
    blocks: int = 0
    shrink: float = 0.0

    @property
    def groups(self) -> int | None:
        """Of a synthetic instance."""
        return BLOCK * self.blocks or (None if self.shape is None else self.shape.groups)


def cases(full: bool, groups: list[int] | None, runs: list[str]) -> list[Case]:
    """The rows of the table."""
    rows: list[Case] = []
    for run in runs:
        if run.endswith(".npz"):
            rows += [
                Case(f"{Path(run).stem}, {kind}, {bits} bits", 60.0, None, run, bits, shrink=shrink)
                for kind, shrink in (("all cross terms", 0.0), ("shrunk at 1 se", 1.0))
                for bits in (3.5, 4, 4.5, 6)
            ]
        else:
            rows += [
                Case(f"{Path(run).name}, measured, {bits} bits", 60.0, None, run, bits)
                for bits in (2.25, 2.5, 3, 4, 5)
            ]
    for count, options, bits in ((6, 4, 3.0), (12, 5, 3.0)):
        for indefinite in (False, True):
            rows.append(_case(Shape(count, options, COHERENCE["medium"], indefinite, bits), 60.0))
    chosen = {
        20: [("weak", False, 4.0), ("weak", True, 3.0), ("medium", True, 4.0), ("strong", False, 2.5)],
        28: [("medium", False, 2.5), ("strong", True, 3.0)],
        54: [("weak", False, 4.0), ("medium", True, 2.5), ("strong", False, 3.0)],
        224: [("weak", False, 4.0), ("medium", False, 4.0), ("strong", False, 4.0)],
        560: [("medium", False, 4.0), ("medium", True, 4.0)],
        2000: [("medium", False, 4.0)],
    }  # fmt: skip
    limits = {560: 300.0, 2000: 600.0}
    for count, kinds in chosen.items():
        if full:
            kinds = [(c, i, b) for c in COHERENCE for i in (False, True) for b in (2.5, 3.0, 4.0, 5.0)]
        for coherence, indefinite, bits in kinds:
            rows.append(
                _case(Shape(count, 7, COHERENCE[coherence], indefinite, bits), limits.get(count, 60.0))
            )
    rows.append(
        Case("15000 × 4, blocks of 60, medium, PSD, 3.5 bits", 300.0, bits=3.5, blocks=15000 // BLOCK)
    )
    return [row for row in rows if groups is None or row.groups is None or row.groups in groups]


def _case(shape: Shape, limit_s: float) -> Case:
    coherence = next(name for name, value in COHERENCE.items() if value == shape.coherence)
    sign = "indefinite" if shape.indefinite else "PSD"
    return Case(f"{shape.groups} × {shape.options}, {coherence}, {sign}, {shape.bits:g} bits", limit_s, shape)


def problem_of(case: Case) -> Problem:
    """The case's problem."""
    if case.shape is not None:
        return make_instance(case.shape)
    if case.blocks:
        return make_blocked_instance(case.blocks, BLOCK, case.bits)
    if case.run.endswith(".npz"):
        return measured_instance(Path(case.run), case.bits, case.shrink)
    from hpcmpq.solve.formulate import make_problem
    from hpcmpq.solve.settings import settings_of
    from hpcmpq.solve.shrinkage import shrunk
    from hpcmpq.store.plan_file import read_plan
    from hpcmpq.store.quadratic_file import read_quadratic
    from hpcmpq.store.run_dir import RunDir

    run = RunDir(Path(case.run))
    plan = read_plan(run)
    settings = settings_of(plan)
    model = shrunk(read_quadratic(run.quadratic_path), settings.shrink)
    return make_problem(plan, model, {"weight_bits": case.bits}, settings)


def solve_one(case: Case, method: str, limit_s: float) -> dict[str, object]:
    """Runs in the child process: one method on one case."""
    problem = problem_of(case)
    started = time.perf_counter()
    if method == "first":
        limit_s = 30.0 if problem.num_groups >= 560 else 5.0
        compact = presolve(problem)
        assert isinstance(compact, Compact)
        found = search(compact, deadline=started + limit_s, seed=1)
        objective = None if found is None else problem.objective(compact.expand(found[0]))
        return {"objective": objective, "bound": None, "seconds": time.perf_counter() - started}
    solvers: dict[str, Solver] = {
        "quadratic": QuadraticSolver(),
        "diagonal": DiagonalSolver(drop_cross_terms=True),
        "cp-sat": LinearSolver(form="ip"),
        "exhaustive": ExhaustiveSolver(),
    }
    try:
        answer: Solution = solvers[method].solve(problem, time_limit_s=limit_s, seed=0)
    except UserError as error:
        return {"objective": None, "bound": None, "seconds": 0.0, "note": str(error).split(",")[0]}
    return {
        "objective": answer.objective,
        "bound": answer.bound,
        "seconds": answer.seconds,
        "termination": answer.termination.value,
    }


def in_child(case: Case, method: str, limit_s: float) -> dict[str, object]:
    """`solve_one` in its own process, with that process's peak memory in bytes."""
    text = json.dumps({"case": asdict(case), "method": method, "limit_s": limit_s})
    command = [sys.executable, "-m", "bench.solver", "--child", text]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


def row_of(case: Case, cp_sat_s: float) -> list[str]:
    """The cells of one case, measured; CP-SAT for at most so many seconds."""
    results = {method: in_child(case, method, case.limit_s) for method in ("quadratic", "first", "diagonal")}
    taken_s = float(str(results["quadratic"]["seconds"]))
    results["cp-sat"] = in_child(case, "cp-sat", min(cp_sat_s, max(5.0, taken_s)))
    if case.shape is not None and case.shape.groups <= 12:
        results["exhaustive"] = in_child(case, "exhaustive", case.limit_s)
    found = [float(str(r["objective"])) for r in results.values() if r["objective"] is not None]
    best = min(found)
    ours = results["quadratic"]
    exact = f", enumerated {results['exhaustive']['objective']:.8g}" if "exhaustive" in results else ""
    return [
        case.name + exact,
        f"{ours['objective']:.8g}",
        _gap(ours),
        f"{ours['seconds']:.1f} ({ours['termination']})",
        f"{_above(results['first']['objective'], best)}",
        _above(ours["objective"], best),
        f"{_above(results['diagonal']['objective'], best)}",
        str(
            results["cp-sat"].get("note")
            or f"{_above(results['cp-sat']['objective'], best)}, gap {_gap(results['cp-sat'])}"
            + f", in {cp_sat_s:g} s" * (cp_sat_s < taken_s)
        ),
        f"{float(str(ours['peak_bytes'])) / 1e9:.2f}",
    ]


def _gap(result: dict[str, object]) -> str:
    if result["objective"] is None or result["bound"] is None:
        return "none"
    objective, bound = float(str(result["objective"])), float(str(result["bound"]))
    return f"{100 * (objective - bound) / max(abs(objective), 1e-300):.4f} %"


def _above(objective: object, best: float) -> str:
    if objective is None:
        return "none"
    return f"+{100 * (float(str(objective)) - best) / max(abs(best), 1e-300):.3f} %"


HEADER = [
    "groups × options",
    "objective",
    "proven gap",
    "seconds",
    "search after 5 s (30 s)",
    "ours above best",
    "diagonal knapsack above best",
    "CP-SAT, same time",
    "peak GB",
]


def known_rows() -> dict[str, list[str]]:
    """{first cell up to its first bracket: row} of the table in bench/RESULTS.md."""
    lines = [line for line in read_section("solver").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {
        name_of(row): row
        for row in cells
        if len(row) == len(HEADER) and row != HEADER and row[0][:3] != "---"
    }


def name_of(row: list[str]) -> str:
    """The case of a row."""
    return row[0].partition(", enumerated")[0]


def main() -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every coherence, curvature and number of bits")
    parser.add_argument("--groups", type=int, nargs="*", help="only these numbers of groups")
    parser.add_argument("--only", default="", help="only rows whose name has this in it, such as indefinite")
    parser.add_argument("--runs", nargs="*", default=[], help="run directories with a quadratic.h5")
    parser.add_argument("--cp-sat-s", type=float, default=600.0, help="most seconds of CP-SAT")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.child)
        shape = job["case"].pop("shape")
        case = Case(**job["case"], shape=None if shape is None else Shape(**shape))
        result = solve_one(case, job["method"], job["limit_s"])
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(result))
        return
    rows = []
    for case in cases(arguments.full, arguments.groups, arguments.runs):
        if arguments.only not in case.name:
            continue
        rows.append(row_of(case, arguments.cp_sat_s))
        print(" | ".join(rows[-1]), flush=True)
        if not arguments.no_write:
            kept = {**known_rows(), **{name_of(row): row for row in rows}}
            write_section(
                "solver",
                f"## Solver\n\n`python -m bench.solver`, {os.cpu_count()} cores, numpy {np.__version__}.\n\n"
                + table(HEADER, list(kept.values())),
            )
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
