"""What `calibration.balance_experts` is worth: KL of uniform formats whose codes are fitted on chosen samples.

    python -m bench.balanced_rounding --held-out 16     four candidates for each sample, measured on another text
    python -m bench.balanced_rounding --held-out 100    fewer candidates, since many samples of their text are kept

Of configs/mixture.yaml with `quantizer.rounding: gptq`, for several `calibration.seed`: the samples that the key
chooses against as many first ones of the same candidates, which are what is fitted on without it. Writes
section `balanced_rounding_N` of bench/RESULTS.md, N samples being held out.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.results import ROOT, table, write_section
from hpcmpq.config import read_config
from hpcmpq.evaluate.statistics import mean_with_interval
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.models.data.splits import load_splits
from hpcmpq.planning.balanced_samples import balanced_choice, routed_tokens
from hpcmpq.planning.original import Original, find_groups, load_original
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.quantized.variants import Variants
from hpcmpq.report.findings import Z95
from hpcmpq.rounding.options import make_codes, stored_formats
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace
from hpcmpq.store.run_dir import RunDir

SIZES, SEEDS, FORMATS = (16, 32), (0, 1, 2, 3), ("int3", "int4")

NUM_CALIBRATION, NUM_EVALUATED = 8, 512
"""Few samples that nothing is fitted on, and all of the other text."""


Losses = dict[tuple[str, str], np.ndarray]
"""{(format, text): KL of each sample, [N]}."""

PLACES = [(name, text) for name in FORMATS for text in ("held out", "other text")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", type=int, default=16)
    num_held_out = parser.parse_args().held_out
    torch.set_num_threads(1)
    original = load_original(with_gptq(num_held_out), ())
    rows: list[list[str]] = []
    counts: list[tuple[int, int]] = []
    for size in SIZES:
        pairs = []
        for seed in SEEDS:
            config = with_gptq(num_held_out)
            calibration = replace(config.calibration, rounding_samples=size, seed=seed)
            splits = load_splits(replace(config, calibration=calibration))
            assert splits.candidates is not None
            candidates = splits.candidates.samples
            space = space_of(original, splits)
            tokens_NLE = routed_tokens(original, candidates, space.groups, size)
            chosen = balanced_choice(tokens_NLE, size)
            pair = [
                losses(original, config, space, part, splits)
                for part in (candidates[:size], candidates[chosen])
            ]
            pairs.append(pair)
            fewest = [int(tokens_NLE[part].sum(0).min()) for part in (slice(size), chosen)]
            cells = [str(size), str(seed), str(len(candidates)), f"{fewest[0]} → {fewest[1]}"]
            rows.append([*cells, *(change(pair, place) for place in PLACES)])
            print(" | ".join(rows[-1]), flush=True)
            counts.append((len(splits.held_out), len(splits.evaluation)))
        rows.append([str(size), "all", "", "", *(over_seeds(pairs, place) for place in PLACES)])
        print(" | ".join(rows[-1]), flush=True)
    held_out, evaluated = (span(numbers) for numbers in zip(*counts, strict=True))
    text = f"""## Samples that balance experts, for rounding: {num_held_out} held out

`python -m bench.balanced_rounding --held-out {num_held_out}`: configs/mixture.yaml with `quantizer: {{rounding: gptq}}`
and {NUM_CALIBRATION} calibration samples; of the candidates that `calibration.balance_experts` has, the samples that it
chooses against as many first ones, for seeds of `calibration.seed`. KL in nats of uniform formats, first → balanced, on
{held_out} held-out samples of the same text and {evaluated} of another, and the change in per cent with its 95 %
interval over samples, in pairs; of "all" seeds the mean of the changes with its interval over the seeds.

""" + table(
        ["samples", "seed", "candidates", "tokens of the least used expert", *(", ".join(p) for p in PLACES)],
        rows,
    )  # fmt: skip
    print(text)
    write_section(f"balanced_rounding_{num_held_out}", text)


def with_gptq(num_held_out: int) -> Config:
    """The shipped mixture's config, balanced, evaluated on as much as there is."""
    config = read_config(ROOT / "configs" / "mixture.yaml")
    return replace(
        config,
        calibration=replace(
            config.calibration, num_samples=NUM_CALIBRATION, held_out=num_held_out, balance_experts=True
        ),
        quantizer=replace(config.quantizer, rounding="gptq"),
        evaluation=replace(config.evaluation, num_samples=NUM_EVALUATED),
    )


def space_of(original: Original, splits: Splits) -> SearchSpace:
    """All groups in the uniform formats."""
    groups = find_groups(original, splits.calibration, None).groups
    return SearchSpace(groups, (FORMATS,) * len(groups))


def losses(original: Original, config: Config, space: SearchSpace, fitted: Samples, splits: Splits) -> Losses:
    """Of the formats throughout, with codes fitted on some samples."""
    formats = stored_formats(space, config.quantizer)
    size = config.calibration.samples_per_pass
    with tempfile.TemporaryDirectory() as scratch:
        codes = StoredCodes(RunDir(Path(scratch)), "bench")
        inputs = OriginalInputs(original.model, space.groups, list(fitted.passes(size)), list(formats))
        make_codes(codes, inputs, formats, config.quantizer)
        variants = Variants(original.model, space, config.quantizer, codes=codes)
        uniform = [{group.name: name for group in space.groups} for name in FORMATS]
        found = [
            Comparison(variants, samples, ("kl",), size).measure(uniform)
            for samples in (splits.held_out, splits.evaluation)
        ]
    measured = [one.values["kl"] for both in zip(*found, strict=True) for one in both]
    return dict(zip(PLACES, measured, strict=True))


def span(numbers: Sequence[int]) -> str:
    """The least and the most of some numbers, or the only one."""
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def change(pair: Sequence[Losses], place: tuple[str, str]) -> str:
    """KL before and after, and per cent with the 95 % interval of the difference over samples."""
    first_N, balanced_N = (one[place] for one in pair)
    share = mean_with_interval(100 * (balanced_N - first_N) / first_N.mean())
    reach = Z95 * share["stderr"]
    return f"{first_N.mean():.4f} → {balanced_N.mean():.4f}, {share['mean']:+.1f} ± {reach:.1f} %"


def over_seeds(pairs: Sequence[Sequence[Losses]], place: tuple[str, str]) -> str:
    """Means over seeds, and the 95 % interval of the change over them by Student's t."""
    first_S, balanced_S = (np.array([pair[k][place].mean() for pair in pairs]) for k in (0, 1))
    share = mean_with_interval(100 * (balanced_S / first_S - 1))
    reach = share["interval"][1] - share["mean"]
    return f"{first_S.mean():.4f} → {balanced_S.mean():.4f}, {share['mean']:+.1f} ± {reach:.1f} %"


if __name__ == "__main__":
    main()
