"""Whether the intervals that refinement gives hold: many independent small runs against samples that none of them saw.

    python -m bench.coverage [--runs 120]      writes section `coverage` of bench/RESULTS.md

Each run draws its own calibration and held-out samples of configs/digits.yaml and its own budget, is planned,
calibrated, solved and refined, and expects a loss with a 90 % interval. The loss of its assignment on the evaluation
samples is what comes true. Where these are few, their own noise counts against the interval: a second column widens it
by theirs.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.results import ROOT, table, write_section
from bench.workload import Judge
from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.worker import make_worker
from hpcmpq.config import read_config
from hpcmpq.planning.stage import prepare
from hpcmpq.refine.stage import refine
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.run_dir import RunDir

CONFIG = "configs/digits.yaml"
SIZES = ((16, 16), (64, 32))
"""Calibration and held-out samples."""

Z90 = 1.645


def one_run(seed: int, num_samples: int, held_out: int) -> tuple[float, float, float, float, float]:
    """(expected loss, both ends of its interval, loss of the evaluation samples, its standard error)."""
    limit = float(np.random.default_rng(seed).choice([2.5, 3.0, 3.5, 4.0]))
    read = read_config(ROOT / CONFIG)
    calibration = dataclasses.replace(
        read.calibration, num_samples=num_samples, held_out=held_out, seed=seed, samples_per_unit=8
    )
    config = dataclasses.replace(
        read,
        calibration=calibration,
        budgets={"weight_bits": limit},
        refine=dataclasses.replace(read.refine, max_evaluations=24),
        model=dataclasses.replace(read.model, device="cpu"),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        plan = prepare(config, run, ())
        worker = make_worker(run)
        for unit in plan.units:
            worker(unit)
        reduce(run)
        solve(run, config.budgets, settings_of(plan, time_limit_s=2.0))
        solution = refine(run, lambda done, total: None)
        judge = Judge(config, plan)
        choice_G = plan.space.choice(solution["assignment"])
        loss0_N, loss_N = judge.per_sample([None, choice_G], judge.splits.evaluation)
    low, high = solution["expected_interval"]
    increase_N = loss_N - loss0_N
    stderr = float(increase_N.std(ddof=1) / len(increase_N) ** 0.5)
    return solution["expected_loss"], low, high, float(loss_N.mean()), stderr


def main() -> None:
    """Run all, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=120)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for num_samples, held_out in SIZES:
        found = np.array([one_run(seed, num_samples, held_out) for seed in range(args.runs // len(SIZES))])
        expected, low, high, true, stderr = found.T
        inside = (low <= true) & (true <= high)
        widened = (low - Z90 * stderr <= true) & (true <= high + Z90 * stderr)
        rows.append(
            [
                f"{num_samples} + {held_out}",
                len(found),
                f"{100 * inside.mean():.0f} %",
                f"{100 * widened.mean():.0f} %",
                f"{100 * (true > expected).mean():.0f} %",
                f"{np.exp(np.log(true / expected).mean()):.2f}",
            ]
        )
        print(rows[-1], flush=True)
    header = [
        "calibration + held out", "runs", "inside the 90 % interval", "inside, widened by the evaluation's own noise",
        "above expected", "mean ratio true / expected",
    ]  # fmt: skip
    text = (
        f"## Coverage of expected losses\n\n`python -m bench.coverage --runs {args.runs}`: independent runs of "
        f"{CONFIG}, each with its own calibration and held-out samples and a budget of 2.5 to 4 bits, refined with at "
        "most 24 evaluations; the loss that comes true is that of 449 evaluation samples."
        f"\n\n{table(header, rows)}"
    )
    print(text)
    write_section("coverage", text)


if __name__ == "__main__":
    main()
