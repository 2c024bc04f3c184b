"""How well models of the loss order and predict measured losses of random assignments (DESIGN.md, section 3).

    python -m bench.rank                                   writes section `rank` of bench/RESULTS.md
    python -m bench.rank --config configs/mixture.yaml     section `rank_mixture`

80 random assignments, eight in each of ten bit ranges. Rank is Spearman's correlation within a range, mean over
ranges; ratio is predicted / measured loss increase at all int2, over mixed int2..int4 and over int4..int8.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from bench.results import table, write_section
from bench.workload import Judge, calibrated
from hpcmpq.formats import FORMATS
from hpcmpq.quadratic import quadratic_increase
from hpcmpq.space import SearchSpace

PER_RANGE = 8
BIT_RANGES = [(2, 3), (2, 4), (2, 5), (2, 6), (2, 8), (3, 4), (3, 5), (3, 8), (4, 6), (4, 8)]


def random_choices(space: SearchSpace, seed: int = 0) -> list[np.ndarray]:
    """PER_RANGE assignments for each of `ranges_of` the space, every group uniform over the range's formats."""
    random = np.random.default_rng(seed)
    bits_P = np.array([FORMATS[option.format].num_bits for option in space.options])
    choices = []
    for low, high in ranges_of(space):
        allowed = [
            np.flatnonzero((space.group_P == g) & (bits_P >= low) & (bits_P <= high))
            for g in range(len(space.groups))
        ]
        choices += [np.array([random.choice(options) for options in allowed]) for _ in range(PER_RANGE)]
    return choices


def ranges_of(space: SearchSpace) -> list[tuple[int, int]]:
    """The ranges of BIT_RANGES in which the space has at least two formats."""
    bits = {FORMATS[option.format].num_bits for option in space.options}
    return [(low, high) for low, high in BIT_RANGES if len([b for b in bits if low <= b <= high]) > 1]


def rank(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's correlation within each range of PER_RANGE assignments, mean over ranges."""
    pairs = zip(predicted.reshape(-1, PER_RANGE), measured.reshape(-1, PER_RANGE), strict=True)
    return float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--methods", nargs="*", default=["secant:kl", "hessian:ce", "hessian:kl"])
    args = parser.parse_args()
    own = args.config != parser.get_default("config") or args.methods != parser.get_default("methods")
    model = Path(args.config).stem
    command = "python -m bench.rank"
    if own:
        command += f" --config {args.config} --methods {' '.join(args.methods)}"
    runs = {name: calibrated(args.config, *name.split(":")) for name in args.methods}
    first = next(iter(runs.values()))
    space = first.plan.space
    choices = random_choices(space)
    lowest = np.array([space.slice_of(g).start for g in range(len(space.groups))])
    judge = Judge(first.config, first.plan)
    measured = {}
    for objective in sorted({name.split(":")[1] for name in args.methods}):
        for place, samples in (
            ("calibration", judge.splits.calibration),
            ("evaluation", judge.splits.evaluation),
        ):
            measured[objective, place] = judge.losses([*choices, lowest], samples, objective)
    rows = []
    for name, run in runs.items():
        objective = name.split(":")[1]
        zero = np.zeros_like(run.quadratic.quad_PP)
        for label, quad in ((name, run.quadratic.quad_PP), (f"{name}, diagonal only", zero)):
            predicted = np.array(
                [quadratic_increase(run.quadratic.linear_P, quad, c) for c in [*choices, lowest]]
            )
            true, held = measured[objective, "calibration"], measured[objective, "evaluation"]
            mixed, high = BIT_RANGES.index((2, 4)) * PER_RANGE, BIT_RANGES.index((4, 8)) * PER_RANGE
            ratios = [
                predicted[-1] / true[-1],
                predicted[mixed : mixed + PER_RANGE].mean() / true[mixed : mixed + PER_RANGE].mean(),
                predicted[high : high + PER_RANGE].mean() / true[high : high + PER_RANGE].mean(),
            ]
            rows.append(
                [label, f"{rank(predicted[:-1], true[:-1]):.3f}", f"{rank(predicted[:-1], held[:-1]):.3f}"]
                + [f"{ratio:.2f}" for ratio in ratios]
            )
    header = ["model of the loss", "rank", "rank, held out", "ratio int2", "ratio int2-4", "ratio int4-8"]
    bits = ", ".join(f"{a}-{b}" for a, b in BIT_RANGES)
    text = (
        f"## Rank and ratio over random assignments{f': {model}' if own else ''}\n\n"
        f"`{command}`: {args.config}, 80 random assignments in ten bit ranges {bits}; measured loss "
        "increases of the same objective on the calibration samples, and for the second column on evaluation samples."
        "\n\n"
        f"{table(header, rows)}"
    )
    print(text)
    write_section(f"rank_{model}" if own else "rank", text)


if __name__ == "__main__":
    main()
