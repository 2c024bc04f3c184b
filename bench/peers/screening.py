"""What a cheap first pass could save: the share of the calibration that some budget of a range may still need.

    python -m bench.peers.screening --run RUN

Prices are Lagrangian: at multiplier λ a group takes the option of least c + λ · bits. `perfect` knows c, and keeps
the options that some budget of the range takes. A pass with errors of a factor exp(±2σ) must also keep every option
whose lowest price is below the highest price of the cheapest one; σ = 0.07 is the sampling error of c itself. The last
column takes the costs of `bench.peers.costs` (two probes of the Fisher matrix a sample, which cost a tenth of the
calibration) with the error that they are found to have. An option costs as many blocks as follow its own. RUN has
been through `python -m bench.peers --run RUN`. Writes section `screening_NAME` of bench/RESULTS.md.
"""

import argparse
from pathlib import Path

import numpy as np

from bench.peers.calibration import opened
from bench.results import table, write_section
from hpcmpq.solve.costs.memory import weight_bits_cost
from hpcmpq.space import SearchSpace
from hpcmpq.store.run_dir import RunDir

RANGES = ((3.0, 3.0), (3.5, 3.5), (4.0, 4.0), (3.0, 4.0), (2.5, 6.0))

SIGMAS = (0.07, 0.15)

STEPS = 60
"""Multipliers tried between the ends of a range."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="smollm2")
    parser.add_argument("--run", type=Path, required=True, help="a calibrated run")
    args = parser.parse_args()
    made = opened(RunDir(args.run))
    space, cost_P = made.plan.space, made.quadratic.linear_P
    with np.load(made.kept.file("peer_costs.npz")) as arrays:
        fisher_P = arrays["prismaquant"]
    ratio_P = np.log(np.abs(cost_P) / fisher_P)
    fisher_P, sigma = fisher_P * np.exp(ratio_P.mean()), float(ratio_P.std())
    work_P = blocks_to_run(space)
    rows = []
    for low, high in RANGES:
        kept = [chosen(space, cost_P, low, high)]
        kept += [needed(space, cost_P, s, low, high) for s in SIGMAS]
        kept.append(needed(space, fisher_P, sigma, low, high))
        shares = [f"{work_P[kept_P].sum() / work_P.sum():.0%}" for kept_P in kept]
        missed = int((chosen(space, cost_P, low, high) & ~kept[-1]).sum())
        rows.append([f"{low:g}" if low == high else f"{low:g} to {high:g}", *shares, missed])
    header = [
        "bits",
        "perfect",
        *(f"σ = {s:g}" for s in SIGMAS),
        f"Fisher, σ = {sigma:.2f}",
        "of those, missed",
    ]
    text = (
        f"## What screening could save: {args.name}\n\n`python -m bench.peers.screening`: share of the calibration's "
        f"cost that options still need which some budget of a range may take, {len(space.groups)} groups × "
        f"{', '.join(space.formats[0])}, by how well c is known.\n\n{table(header, rows)}"
    )
    print(text)
    write_section(f"screening_{args.name}", text)


def blocks_to_run(space: SearchSpace) -> np.ndarray:
    """Blocks from each option's own to the last, float64 [P]."""
    block_G = np.array([float(group.block or 0) for group in space.groups])
    return np.asarray((block_G.max() + 1.0 - block_G)[space.group_P])


def cheapest(space: SearchSpace, price_P: np.ndarray) -> np.ndarray:
    """Each group's option of least price, int64 [G]."""
    ends = [space.slice_of(group) for group in range(len(space.groups))]
    return np.array([part.start + int(np.argmin(price_P[part])) for part in ends])


def multiplier(space: SearchSpace, cost_P: np.ndarray, limit: float) -> float:
    """The smallest λ whose choice is within a budget, by bisection."""
    low, high, bits_P = 1e-9, 1e6, weight_bits_cost(space).linear_P
    for _ in range(100):
        middle = (low * high) ** 0.5
        over = bits_P[cheapest(space, cost_P + middle * bits_P)].sum() > limit
        low, high = (middle, high) if over else (low, middle)
    return high


def chosen(space: SearchSpace, cost_P: np.ndarray, low: float, high: float) -> np.ndarray:
    """Whether some budget of a range takes an option, bool [P]."""
    found_P, bits_P = np.zeros(len(cost_P), bool), weight_bits_cost(space).linear_P
    for limit in np.linspace(low, high, STEPS if high > low else 1):
        found_P[cheapest(space, cost_P + multiplier(space, cost_P, limit) * bits_P)] = True
    return found_P


def needed(space: SearchSpace, cost_P: np.ndarray, sigma: float, low: float, high: float) -> np.ndarray:
    """Whether an option may be taken where costs are known to a factor exp(±2σ), bool [P]."""
    found_P, bits_P, group_P = np.zeros(len(cost_P), bool), weight_bits_cost(space).linear_P, space.group_P
    for price in np.geomspace(multiplier(space, cost_P, high), multiplier(space, cost_P, low), STEPS):
        highest_P = cost_P * np.exp(2 * sigma) + price * bits_P
        best_G = highest_P[cheapest(space, highest_P)]
        found_P |= cost_P * np.exp(-2 * sigma) + price * bits_P <= best_G[group_P]
    return found_P


if __name__ == "__main__":
    main()
