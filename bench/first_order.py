"""Loss mean-squared-error that `first_order` predicts against the measured one (arXiv 2505.13060, its fig. on the MSE).

    python -m bench.first_order        writes section `first_order` of bench/RESULTS.md

40 random assignments in bf16, fp8_e4m3 and w8a8 (weights and activations). Predicted is from the config's
calibration samples; measured is E_n[(L_n − L_n of the original)²] over samples that calibration never saw, L_n a
sample's cross entropy, with real quantizers. Rank is Spearman's correlation, ratio the mean of predicted over the
mean of measured. The measured mean of few samples is itself uncertain, so the rank of the measured means of two
halves of the samples stands beside it.
"""

import argparse
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr

from bench.results import table, write_section
from bench.workload import Calibrated, Judge, calibrated
from hpcmpq.quantized.losses import Comparison
from hpcmpq.space import SearchSpace

FORMATS = ("bf16", "fp8_e4m3", "w8a8")
NUM_ASSIGNMENTS = 40
HELD_OUT, NUM_EVALUATION = 110, 1000
"""Samples to measure on, as far as the data have them."""

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
        share_J = (
            np.full(len(FORMATS), 1 / len(FORMATS)) if even_odds else random.dirichlet(np.ones(len(FORMATS)))
        )
        choices.append(np.array([random.choice(np.arange(s.start, s.stop), p=share_J) for s in slices]))
    return choices


def measured_squares(judge: Judge, choices: list[np.ndarray]) -> np.ndarray:
    """(L_n − L_n of the original)² of each choice on the unseen samples, in random order, float64 [choices, N]."""
    assignments = [{}, *(judge.plan.space.assignment(choice_G) for choice_G in choices)]
    per_pass = judge.config.calibration.samples_per_pass
    losses = []
    for samples in (judge.splits.held_out, judge.splits.evaluation):
        parts = Comparison(judge.variants, samples, ("ce",), per_pass).measure(assignments)
        losses.append(np.array([part.values["ce"] for part in parts]))
    original_N, *changed = np.random.default_rng(0).permutation(np.concatenate(losses, 1), axis=1)
    return np.square(np.array(changed) - original_N)


def rows_of(
    name: str, runs: dict[str, Calibrated], choices: list[np.ndarray], square_CN: np.ndarray
) -> list[list[str]]:
    """A row of the table for every form."""
    rows = []
    true = square_CN.mean(1)
    half = square_CN.shape[1] // 2
    ceiling = spearmanr(square_CN[:, :half].mean(1), square_CN[:, half:].mean(1)).statistic
    for method, run in runs.items():
        predicted = np.array([run.quadratic.linear_P[choice_G].sum() for choice_G in choices])
        mean_square = run.quadratic.task_loss_mean_square
        assert mean_square is not None
        ratio_n = predicted / true
        rows.append(
            [
                name,
                method,
                str(square_CN.shape[1]),
                f"{spearmanr(predicted, true).statistic:.3f}",
                f"{ceiling:.3f}",
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
        more = replace(first.config.calibration, held_out=HELD_OUT)
        unseen = replace(first.config.evaluation, num_samples=NUM_EVALUATION)
        judge = Judge(replace(first.config, calibration=more, evaluation=unseen), first.plan)
        name = f"{path.removeprefix('configs/').removesuffix('.yaml')}, {len(first.plan.space.groups)} groups"
        name += " with attention products" if products else ""
        for even_odds in (False, True):
            choices = random_choices(first.plan.space, even_odds)
            squares = measured_squares(judge, choices)
            rows += rows_of(f"{name}, {'even' if even_odds else 'random'} odds", runs, choices, squares)
    header = [
        "model and assignments",
        "form",
        "samples",
        "rank",
        "of two halves",
        "ratio",
        "ratio of the middle 80 %",
        "measured, share of the loss's mean square",
    ]
    text = (
        "## Predicted against measured loss MSE\n\n`python -m bench.first_order`: 40 random assignments in "
        f"{', '.join(FORMATS)} (weights and activations, dynamic ranges): each group by even odds, or by odds drawn "
        "anew for each assignment, which spreads them wider; loss changes of samples that calibration never saw, "
        "through real quantizers. Beside the rank of predicted against measured, that of the measured means of two "
        "halves of the samples.\n\n"
        f"{table(header, rows)}"
    )
    print(text)
    write_section("first_order", text)


if __name__ == "__main__":
    main()
