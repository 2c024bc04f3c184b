"""What cross terms are worth at several sizes of the calibration: as measured, shrunk, dropped, beside uniform formats.

    python -m bench.peers.shrinkage --run RUN --text prose=FILE

RUN is a calibrated run; smaller calibrations are its first samples. Writes section `shrinkage_NAME` of
bench/RESULTS.md; verdicts are kept, and the same command goes on where it was stopped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.peers.__main__ import texts_of
from bench.peers.calibration import IMPORT_PATHS, Calibrated, opened
from bench.peers.choices import Contest
from bench.peers.judge import Judge, Verdict
from bench.peers.table import difference
from bench.peers.weights import kept_weights
from bench.results import table, write_section
from hpcmpq.calibrate.reduce import add_shards, sample_ranges
from hpcmpq.models.load import load_model
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.quantized.variants import open_variants
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.shards import read_shard_of

MODES: dict[str, dict[str, object]] = {
    "shrunk by reliability (default)": {},
    "shrunk at 1 se": {"shrink": 1.0},
    "as measured": {"shrink": 0.0},
    "dropped": {"drop_cross_terms": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--run", type=Path, required=True, help="a calibrated run")
    parser.add_argument("--text", action="append", required=True, help="NAME=FILE_OR_FACTORY to judge on")
    parser.add_argument("--budgets", default="2.5,3,3.5,4,4.5,6")
    parser.add_argument("--judged", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = opened(RunDir(args.run))
    _, texts = texts_of(args, made.config)
    model = load_model(made.config.model, import_paths=IMPORT_PATHS)
    weights = kept_weights(made.kept, open_variants(made.run, made.plan, model, check_outputs=False))
    budgets = [float(limit) for limit in args.budgets.split(",")]
    parts = [
        f"## Cross terms by size of the calibration: {args.name}",
        f"`python -m bench.peers.shrinkage`: {len(made.plan.space.groups)} groups, formats "
        f"{', '.join(made.plan.space.formats[0])}, rounding {made.config.quantizer.rounding}; the solver's answers on "
        f"the first samples of one calibration, judged on {args.judged} samples of another text: mean KL in nats, "
        "differences to cross terms dropped with 95 % intervals paired by sample.",
    ]
    for text, samples in texts.items():
        judge = Judge(weights, samples, made.kept.path / "judged" / f"{text}-{samples.digest()[:8]}")
        parts += [f"### {text}", verdicts(made, judge, budgets)]
    found = "\n\n".join(parts)
    print(found)
    write_section(f"shrinkage_{args.name}", found)


def verdicts(made: Calibrated, judge: Judge, budgets: list[float]) -> str:
    """The table of one text."""
    rows = []
    for quadratic in smaller_calibrations(made):
        tokens = quadratic.num_samples * made.config.calibration.sequence_length
        smaller = replace(made, quadratic=quadratic)
        by_mode = {
            mode: [judged(Contest(smaller, limit, judge), judge, changes) for limit in budgets]
            for mode, changes in MODES.items()
        }
        for mode, found in by_mode.items():
            cells = [
                f"{verdict.kl_N.mean():.4f}"
                + ("" if mode == "dropped" else f" {difference(dropped, verdict)}")
                for verdict, dropped in zip(found, by_mode["dropped"], strict=True)
            ]
            rows.append([f"{tokens:,}", mode, *cells])
    uniform = [
        judge.verdict(made.plan.space.assignment(Contest(made, b, judge).uniform())).kl_N.mean()
        for b in budgets
    ]
    rows.append(["", "uniform", *(f"{kl:.4f}" for kl in uniform)])
    return table(["tokens", "cross terms", *(f"{limit:g} b" for limit in budgets)], rows)


def judged(contest: Contest, judge: Judge, changes: dict[str, object]) -> Verdict:
    """The solver's answer, judged."""
    return judge.verdict(contest.calibrated.plan.space.assignment(contest.secant(**changes)))


def smaller_calibrations(made: Calibrated) -> list[QuadraticModel]:
    """The quadratic models of the first third of the samples, where there are units for it, and of all of them."""
    ranges = sample_ranges(made.plan.units)
    models = []
    for count in sorted({len(ranges) // 3, len(ranges)} - {0}):
        kept = set(ranges[:count])
        units = tuple(u for u in made.plan.units if (u.sample_start, u.sample_stop) in kept)
        shards = ((unit, read_shard_of(made.plan, made.run, unit)) for unit in units)
        models.append(add_shards(replace(made.plan, units=units), shards).model)
    assert np.allclose(models[-1].linear_P, made.quadratic.linear_P)
    return models


if __name__ == "__main__":
    main()
