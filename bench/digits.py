"""Digits: the solution against the true optimum among all 4,096 assignments, measured, for `kl` and `ce`.

python -m bench.digits             writes section `digits` of bench/RESULTS.md
"""

from itertools import product

import numpy as np

from bench.results import table, write_section
from bench.workload import Judge, calibrated
from hpcmpq.solve.formulate import make_problem, uniform_hint
from hpcmpq.solve.outcome import solve_problem
from hpcmpq.solve.settings import settings_of

CONFIG = "configs/digits.yaml"
LIMITS = (2.25, 2.5, 3.0, 3.5, 4.0)


def main() -> None:
    """Enumerate, solve, compare."""
    rows = []
    for objective in ("kl", "ce"):
        run = calibrated(CONFIG, "secant", objective)
        space = run.plan.space
        groups = [range(space.slice_of(g).start, space.slice_of(g).stop) for g in range(len(space.groups))]
        choices = [np.array(choice) for choice in product(*groups)]
        judge = Judge(run.config, run.plan)
        true = judge.losses(choices, judge.splits.calibration, objective)
        place = {choice.tobytes(): n for n, choice in enumerate(choices)}
        for limit in LIMITS:
            settings = settings_of(run.plan, time_limit_s=10.0)
            problem = make_problem(run.plan, run.quadratic, {"weight_bits": limit}, settings)
            solution = solve_problem(problem, run.quadratic, settings, uniform_hint(space, problem))
            assert solution.choice_G is not None
            feasible = np.array([problem.is_feasible(choice) for choice in choices])
            best = true[feasible].min()
            found = true[place[solution.choice_G.tobytes()]]
            rank = int((true[feasible] < found).sum()) + 1
            rows.append(
                [
                    objective,
                    limit,
                    f"{best:.5f}",
                    f"{found:.5f}",
                    f"{found / best:.3f}",
                    f"{rank} of {int(feasible.sum())}",
                    solution.termination.value,
                ]
            )
    header = ["objective", "weight_bits", "true optimum", "solution", "ratio", "place", "solver"]
    text = (
        f"## Digits: against enumeration\n\n`python -m bench.digits`: {CONFIG}, `secant`, loss increase measured "
        "on the calibration samples for all 4,096 assignments; a ratio of 1 means that the true optimum was "
        f"found.\n\n{table(header, rows)}"
    )
    print(text)
    write_section("digits", text)


if __name__ == "__main__":
    main()
