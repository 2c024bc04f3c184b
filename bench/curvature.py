"""Cost of exact second-order entries: `hessian` against a Hessian-vector product per option by curvlinops.

    pip install curvlinops-for-pytorch
    python -m bench.curvature             writes section `curvature` of bench/RESULTS.md

The loss is the quickstart's cross entropy, whose Hessian is indefinite, so `hessian` goes forward over reverse. Both
give c and H on the same samples in the same precision; curvlinops multiplies H by some options' errors, and its
seconds are extrapolated to all. A gradient-equivalent is one gradient of the mean loss in all searched weights. CPU
seconds on one thread, timed in turns; the first call of each is not counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from bench.results import ROOT, table, write_section
from hpcmpq.calibrate.sums import add_up
from hpcmpq.config import read_config
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.models.outputs import Logits, forward
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.sensitivity.hessian import measure_by_reversal
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.space import SearchSpace

ROUNDS = 3


class PlainSiLU(nn.Module):
    """x·σ(x): the fused backward of torch's own has no forward derivative under curvlinops' vmap."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * x.sigmoid()


class MeanLoss(nn.Module):
    """Mean cross entropy over samples; curvlinops reads `reduction`."""

    reduction = "mean"

    def forward(self, z_NTV: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of logits [N, T, V]."""
        return OBJECTIVES["ce"].value(z_NTV, z_NTV.detach(), targets).mean()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--products", type=int, default=14, help="options that curvlinops is timed on")
    args = parser.parse_args()
    from curvlinops import HessianLinearOperator

    torch.set_num_threads(1)
    config = read_config(ROOT / "configs" / "quickstart.yaml")
    model = load_model(config.model)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.mlp.act_fn = PlainSiLU()  # type: ignore[union-attr]
    samples = load_splits(config, ()).calibration[: args.samples]
    groups = find_groups(model, config.groups, samples[:1].inputs)
    space = SearchSpace(groups, (config.formats,) * len(groups))
    variants = Variants(model, space, config.quantizer)
    objective = OBJECTIVES["ce"]
    subject = Subject(model, space, variants, objective, None, args.samples, 0)
    names = [member.parameter for group in groups for member in group.members]
    weights = [model.get_parameter(name) for name in names]
    errors = {option.index: variants.errors(option.group) for option in space.options}

    def direction(option: int) -> list[Tensor]:
        own = space.options[option]
        place = option - space.slice_of(own.group).start
        members = {member.parameter for member in groups[own.group].members}
        return [
            errors[option][name][place] if name in members else torch.zeros_like(weight)
            for name, weight in zip(names, weights, strict=True)
        ]

    mean_loss = MeanLoss()
    ids, targets = samples.inputs["input_ids"], samples.targets
    assert targets is not None
    timed = np.linspace(0, space.num_options - 1, args.products).astype(int).tolist()

    def learn(on: bool) -> None:
        for weight in weights:
            weight.requires_grad_(on)

    def gradient() -> tuple[Tensor, ...]:
        learn(True)
        return torch.autograd.grad(mean_loss(forward(model, samples.inputs), targets), weights)

    operator = HessianLinearOperator(
        Logits(model), mean_loss, weights, [(ids, targets)], check_deterministic=False, num_data=len(samples)
    )

    def by_operator() -> np.ndarray:
        learn(True)
        rows = []
        for option in timed:
            product = operator @ direction(option)
            rows.append(
                [sum(float((a * b).sum()) for a, b in zip(product, direction(q), strict=True)) for q in timed]
            )
        return np.array(rows)

    def products_only() -> None:
        learn(True)
        for option in timed:
            operator @ direction(option)

    def ours() -> np.ndarray:
        learn(False)
        arrays, num_samples, _ = add_up(measure_by_reversal(subject, samples, range(len(groups))))
        return arrays["quad"] / num_samples

    theirs_TT, ours_PP = by_operator(), ours()
    upper = np.triu(ours_PP) + np.triu(ours_PP, 1).T
    found_TT = upper[np.ix_(timed, timed)]
    difference = np.abs(found_TT - theirs_TT).max() / np.abs(theirs_TT).max()
    seconds = in_turns([gradient, products_only, ours])
    gradient_s, operator_s, ours_s = seconds
    operator_s *= space.num_options / len(timed)
    rows = [
        [
            "curvlinops, one product per option",
            f"{operator_s:.1f}",
            f"{operator_s / gradient_s / space.num_options:.2f}",
        ],
        ["`hessian`", f"{ours_s:.1f}", f"{ours_s / gradient_s / space.num_options:.2f}"],
    ]
    text = (
        f"## Exact second-order entries\n\n`python -m bench.curvature`: quickstart, cross entropy, {space.num_options} "
        f"options, {args.samples} samples of {ids.shape[1]} tokens, float32; one gradient {gradient_s:.3f} s; largest "
        f"difference of the {len(timed)} × {len(timed)} entries compared {difference:.1e} of the largest; curvlinops "
        f"extrapolated from {len(timed)} options. `hessian` is {operator_s / ours_s:.1f} times faster.\n\n"
        + table(["", "CPU s, all options", "gradient-equivalents per option"], rows)
    )
    print(text)
    write_section("curvature", text)


def in_turns(functions: list[Callable[[], object]]) -> list[float]:
    """Median CPU seconds of each, called one after the other ROUNDS times."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, found in zip(functions, times, strict=True):
            repeats = 10 if not found and function is functions[0] else 1
            start = time.process_time()
            for _ in range(repeats):
                function()
            found.append((time.process_time() - start) / repeats)
    return [statistics.median(found) for found in times]


if __name__ == "__main__":
    main()
