"""Remedies for bfloat16, side by side: largest relative error of `linear` and diag H at every bit width.

    python -m bench.low_precision [--samples 2] [--length 48]     writes section `low_precision` of bench/RESULTS.md

`plain` runs the whole model in bfloat16. `float32 residual` keeps everything but matrix products in float32, each
product rounding its operands. `scaled steps` does that and perturbs by s δ, s the power of two that brings the
option's error to int4's, dividing responses by s and losses by s². `compensated` is what the package does with
`model.dtype: bfloat16`; with the original in float32 it is `sensitivity.products: bfloat16`.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.results import table, write_section
from hpcmpq.examples.topics import training_text
from hpcmpq.formats import Quantizer
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import forward, load_model
from hpcmpq.models.weights import swapped
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.response.low_precision import run_low_precision
from hpcmpq.sensitivity.scores import make_score
from hpcmpq.settings import GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace

FORMATS = tuple(f"int{bits}" for bits in range(2, 9))
REFERENCE = FORMATS.index("int4")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--length", type=int, default=48)
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = args.samples * args.length
    tokens = torch.tensor(list(training_text().encode()[:count])).reshape(args.samples, args.length)
    inputs = {"input_ids": tokens}
    variants = variants_of(load(), inputs)
    space = variants.space
    z0_NTV, outputs = make_engine("auto", variants, inputs).respond(inputs, range(space.num_options))
    exact = scores(z0_NTV, {p: z for members, z_Q in outputs for p, z in zip(members, z_Q, strict=True)})
    rows = []
    for name, remedy in REMEDIES.items():
        linear, diagonal = remedy(inputs)
        cells = []
        for f in range(len(FORMATS)):
            errors = [
                float((found[f :: len(FORMATS)] / true[f :: len(FORMATS)] - 1).abs().max()) * 100
                for found, true in zip((linear, diagonal), exact, strict=True)
            ]
            cells.append(f"{errors[0]:.1f} / {errors[1]:.1f}")
        rows.append([name, *cells])
        print(*rows[-1], sep=" | ", flush=True)
    text = (
        "## Low precision\n\n`python -m bench.low_precision`: quickstart, kl, largest error in per cent of `linear` / "
        f"diagonal of H against float32 when matrix products run in bfloat16; {args.samples} samples of {args.length} "
        "tokens.\n\n" + table(["", *FORMATS], rows)
    )
    write_section("low_precision", text)


def load(dtype: str = "float32") -> torch.nn.Module:
    """The quickstart model."""
    return load_model(ModelConfig(path="configs/quickstart_model", dtype=dtype))  # type: ignore[arg-type]


def variants_of(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Variants:
    groups = find_groups(model, GroupsConfig(), inputs)
    return Variants(model, SearchSpace(groups, (FORMATS,) * len(groups)), Quantizer())


def scores(
    z0_NTV: Tensor, z_P: dict[int, Tensor], steps_P: dict[int, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Loss increase and H_pp of every option, [P] each, from outputs of steps s δ."""
    score = make_score(OBJECTIVES["kl"], z0_NTV.float(), None)
    linear, diagonal = [], []
    for p in sorted(z_P):
        increase_N, phi_NTV = score(z_P[p].float() - z0_NTV.float())
        step = 1.0 if steps_P is None else steps_P[p]
        linear.append(increase_N.sum() / step**2)
        diagonal.append(phi_NTV.double().square().sum() / step**2)
    return torch.stack(linear), torch.stack(diagonal)


def plain(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    variants = variants_of(load("bfloat16"), inputs)
    return scores(forward(variants.model, inputs), whole_passes(variants, inputs, lambda p, w, q: q))


def float32_residual(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    variants = variants_of(load(), inputs)
    run_low_precision(variants.model, torch.bfloat16)
    return scores(forward(variants.model, inputs), whole_passes(variants, inputs, lambda p, w, q: q))


def scaled_steps(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    variants = variants_of(load(), inputs)
    steps = {}
    for option in variants.space.options:
        group = variants.space.groups[option.group]
        original = variants.originals(group)

        def size(name: str, group=group, original=original) -> float:
            return math.sqrt(
                sum(
                    float((t - original[n]).square().sum())
                    for n, t in variants.quantized(group, name).items()
                )
            )

        steps[option.index] = max(
            1.0, 2.0 ** round(math.log2(size(FORMATS[REFERENCE]) / size(option.format)))
        )
    run_low_precision(variants.model, torch.bfloat16)
    outputs = whole_passes(variants, inputs, lambda p, w, q: w + steps[p] * (q - w))
    return scores(forward(variants.model, inputs), outputs, steps)


def compensated(inputs: dict[str, Tensor], exact_original: bool = False) -> tuple[Tensor, Tensor]:
    variants = variants_of(load(), inputs)
    engine = make_engine(
        "auto", variants, inputs, low_precision=torch.bfloat16, exact_original=exact_original
    )
    z0_NTV, outputs = engine.respond(inputs, range(variants.space.num_options))
    return scores(z0_NTV, {p: z for members, z_Q in outputs for p, z in zip(members, z_Q, strict=True)})


def whole_passes(
    variants: Variants, inputs: dict[str, Tensor], step: Callable[[int, Tensor, Tensor], Tensor]
) -> dict[int, Tensor]:
    """Outputs of every option with weights step(p, w, Q(w))."""
    found = {}
    for option in variants.space.options:
        group = variants.space.groups[option.group]
        original = variants.originals(group)
        quantized = variants.quantized(group, option.format)
        with swapped(variants.model, {n: step(option.index, original[n], t) for n, t in quantized.items()}):
            found[option.index] = forward(variants.model, inputs)
    return found


REMEDIES: dict[str, Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]] = {
    "plain bfloat16": plain,
    "float32 residual": float32_residual,
    "float32 residual, scaled steps": scaled_steps,
    "compensated (the package)": compensated,
    "compensated, original in float32": partial(compensated, exact_original=True),
}

if __name__ == "__main__":
    main()
