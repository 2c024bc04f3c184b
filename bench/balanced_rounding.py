"""What `calibration.balance_experts` is worth: KL of uniform formats whose codes are fitted on chosen samples.

    python -m bench.balanced_rounding            writes section `balanced_rounding` of bench/RESULTS.md

Of configs/mixture.yaml with `quantizer.rounding: gptq`, for several `calibration.seed`: the samples that the key
chooses against as many first ones of the same candidates, which are what is fitted on without it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from bench.results import ROOT, table, write_section
from hpcmpq.config import read_config
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.models.data.splits import load_splits
from hpcmpq.planning.balanced_samples import balanced_choice, routed_tokens
from hpcmpq.planning.original import Original, find_groups, load_original
from hpcmpq.quantized.losses import Comparison
from hpcmpq.quantized.stored_codes import StoredCodes
from hpcmpq.quantized.variants import Variants
from hpcmpq.rounding.options import make_codes, stored_formats
from hpcmpq.rounding.original_inputs import OriginalInputs
from hpcmpq.settings import Config
from hpcmpq.space import SearchSpace
from hpcmpq.store.run_dir import RunDir

SIZES, SEEDS, FORMATS = (16, 32), (0, 1, 2, 3), ("int3", "int4")
NUM_CALIBRATION, NUM_HELD_OUT, NUM_EVALUATED = 8, 100, 512
"""Few samples that nothing is fitted on, many of the same text to measure on, and all of the other text."""


Losses = dict[tuple[str, str], np.ndarray]
"""{(format, text): KL of each sample, [N]}."""

PLACES = [(name, text) for name in FORMATS for text in ("held out", "other text")]


def main() -> None:
    torch.set_num_threads(1)
    original = load_original(with_gptq(), ())
    rows, counts = [], ""
    for size in SIZES:
        pairs = []
        for seed in SEEDS:
            config = with_gptq()
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
            rows.append([*cells, *(change([pair], place) for place in PLACES)])
            print(" | ".join(rows[-1]), flush=True)
            counts = f"{len(splits.held_out)} held-out samples of the same text and {len(splits.evaluation)} of another"
        rows.append([str(size), "all", "", "", *(change(pairs, place) for place in PLACES)])
        print(" | ".join(rows[-1]), flush=True)
    text = f"""## Samples that reach all experts, for rounding

`python -m bench.balanced_rounding`: configs/mixture.yaml with `quantizer: {{rounding: gptq}}` and {NUM_CALIBRATION}
calibration samples; of the candidates that `calibration.balance_experts` has, the samples that it chooses against as
many first ones, for seeds of `calibration.seed`. KL in nats of uniform formats, first → balanced, on {counts},
and the change in per cent with the 95 % interval of its mean over samples, in pairs; "all" is over the samples of all
seeds.

""" + table(
        ["samples", "seed", "candidates", "tokens of the least used expert", *(", ".join(p) for p in PLACES)],
        rows,
    )  # fmt: skip
    print(text)
    write_section("balanced_rounding", text)


def with_gptq() -> Config:
    """The shipped mixture's config, balanced, evaluated on as much as there is."""
    config = read_config(ROOT / "configs" / "mixture.yaml")
    return replace(
        config,
        calibration=replace(
            config.calibration, num_samples=NUM_CALIBRATION, held_out=NUM_HELD_OUT, balance_experts=True
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


def change(pairs: Sequence[Sequence[Losses]], place: tuple[str, str]) -> str:
    """KL before and after, and per cent with the 95 % interval of the difference."""
    first_N, balanced_N = (np.concatenate([pair[k][place] for pair in pairs]) for k in (0, 1))
    share_N = 100 * (balanced_N - first_N) / first_N.mean()
    interval = 1.96 * share_N.std(ddof=1) / len(share_N) ** 0.5
    return f"{first_N.mean():.4f} → {balanced_N.mean():.4f}, {share_N.mean():+.1f} ± {interval:.1f} %"


if __name__ == "__main__":
    main()
