"""Loss mean-squared-error that `first_order` predicts against the measured one (arXiv 2505.13060, its fig. on the MSE).

    python -m bench.first_order        writes section `first_order` of bench/RESULTS.md

40 random assignments in bf16, fp8_e4m3 and w8a8 (weights and activations). Measured is E_n[(L_n − L_n of the
original)²] over the calibration samples, L_n a sample's cross entropy, with real quantizers. Rank is Spearman's
correlation, ratio the mean of predicted over the mean of measured.
"""

import argparse

import numpy as np
from scipy.stats import spearmanr

from bench.results import table, write_section
from bench.workload import Calibrated, Judge, calibrated
from hpcmpq.measure import Comparison
from hpcmpq.space import SearchSpace

FORMATS = ("bf16", "fp8_e4m3", "w8a8")
NUM_ASSIGNMENTS = 40
METHODS = ("first_order", "first_order_noise")
CASES = (
    ("configs/quickstart.yaml", False),
    ("configs/quickstart.yaml", True),
    ("configs/digits.yaml", False),
)


def random_choices(space: SearchSpace, even_odds: bool, seed: int = 0) -> list[np.ndarray]:
    """Assignments whose groups take each format with even odds, or with odds drawn anew for each assignment."""
    random = np.random.default_rng(seed)
    slices = [space.slice_of(group) for group in range(len(space.groups))]
    choices = []
    for _ in range(NUM_ASSIGNMENTS):
        share_K = (
            np.full(len(FORMATS), 1 / len(FORMATS)) if even_odds else random.dirichlet(np.ones(len(FORMATS)))
        )
        choices.append(np.array([random.choice(np.arange(s.start, s.stop), p=share_K) for s in slices]))
    return choices


def measured_mse(judge: Judge, choices: list[np.ndarray]) -> np.ndarray:
    """E_n[(L_n − L_n of the original)²] of each choice, float64 [len(choices)]."""
    assignments = [{}, *(judge.plan.space.assignment(choice_G) for choice_G in choices)]
    per_pass = judge.config.calibration.samples_per_pass
    measured = Comparison(judge.variants, judge.splits.calibration, ("ce",), per_pass).measure(assignments)
    original_N = measured[0].values["ce"]
    return np.array([np.square(part.values["ce"] - original_N).mean() for part in measured[1:]])


def rows_of(
    name: str, runs: dict[str, Calibrated], choices: list[np.ndarray], true: np.ndarray
) -> list[list[str]]:
    """A row of the table for every form."""
    rows = []
    for method, run in runs.items():
        predicted = np.array([run.quadratic.linear_P[choice_G].sum() for choice_G in choices])
        mean_square = run.quadratic.task_loss_mean_square
        assert mean_square is not None
        ratio_n = predicted / true
        rows.append(
            [
                name,
                method,
                f"{spearmanr(predicted, true).statistic:.3f}",
                f"{predicted.mean() / true.mean():.2f}",
                f"{np.quantile(ratio_n, 0.1):.2f} to {np.quantile(ratio_n, 0.9):.2f}",
                f"{true.min() / mean_square:.1e} to {true.max() / mean_square:.1e}",
            ]
        )
    return rows


def main() -> None:
    """Calibrate, measure, compare."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = []
    for path, products in CASES:
        runs = {m: calibrated(path, m, "ce", formats=FORMATS, attention_products=products) for m in METHODS}
        first = next(iter(runs.values()))
        judge = Judge(first.config, first.plan)
        name = f"{path.removeprefix('configs/').removesuffix('.yaml')}, {len(first.plan.space.groups)} groups"
        name += " with attention products" if products else ""
        for even_odds in (False, True):
            choices = random_choices(first.plan.space, even_odds)
            true = measured_mse(judge, choices)
            rows += rows_of(f"{name}, {'even' if even_odds else 'random'} odds", runs, choices, true)
    header = [
        "model and assignments",
        "form",
        "rank",
        "ratio",
        "ratio of the middle 80 %",
        "measured, share of the loss's mean square",
    ]
    text = (
        "## Predicted against measured loss MSE\n\n`python -m bench.first_order`: 40 random assignments in "
        f"{', '.join(FORMATS)} (weights and activations, dynamic ranges): each group by even odds, or by odds drawn "
        "anew for each assignment, which spreads them wider; loss changes of the calibration samples through real "
        "quantizers.\n\n"
        f"{table(header, rows)}"
    )
    print(text)
    write_section("first_order", text)


if __name__ == "__main__":
    main()
