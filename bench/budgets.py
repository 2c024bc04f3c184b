"""Held-out KL at equal payload bits: secant with cross terms, the same without, and uniform bits.

python -m bench.budgets            writes section `budgets` of bench/RESULTS.md
"""

import argparse

from bench.results import table, write_section
from bench.workload import Judge, calibrated
from hpcmpq.solve.formulate import make_problem, uniform_choices, uniform_hint
from hpcmpq.solve.outcome import solve_problem
from hpcmpq.solve.settings import settings_of

LIMITS = (2.25, 2.5, 3.0, 3.5, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.yaml")
    args = parser.parse_args()
    run = calibrated(args.config, "secant")
    choices, names = [], []
    for limit in LIMITS:
        for drop in (False, True):
            settings = settings_of(run.plan, drop_cross_terms=drop, time_limit_s=10.0)
            problem = make_problem(run.plan, run.quadratic, {"weight_bits": limit}, settings)
            solution = solve_problem(problem, run.quadratic, settings, uniform_hint(run.plan.space, problem))
            assert solution.choice_G is not None
            choices.append(solution.choice_G)
        feasible = {n: c for n, c in uniform_choices(run.plan.space).items() if problem.is_feasible(c)}
        names.append(list(feasible)[-1])
        choices.append(feasible[names[-1]])
    judge = Judge(run.config, run.plan)
    losses = judge.losses(choices, judge.splits.evaluation).reshape(len(LIMITS), 3)
    rows = [
        [limit, f"{cross:.4f}", f"{dropped:.4f}", f"{100 * (cross / dropped - 1):+.1f} %", f"{uniform:.4f} ({name})",
         f"{cross / uniform:.2f}"]
        for limit, name, (cross, dropped, uniform) in zip(LIMITS, names, losses, strict=True)
    ]  # fmt: skip
    header = ["weight_bits", "secant", "cross terms dropped", "difference", "uniform", "secant / uniform"]
    text = (
        f"## Held-out KL at equal payload bits\n\n`python -m bench.budgets`: {args.config}, objective kl, "
        f"{run.quadratic.num_samples} calibration samples, {len(judge.splits.evaluation)} evaluation samples of text "
        f"that was neither trained nor calibrated on; 10 s per solve.\n\n{table(header, rows)}"
    )
    print(text)
    write_section("budgets", text)


if __name__ == "__main__":
    main()
