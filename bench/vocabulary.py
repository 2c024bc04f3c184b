"""What a large vocabulary costs `secant` and what estimated losses add to their error, on a language model.

    python -m bench.vocabulary MODEL_DIR TEXT_FILE [--blocks 4,25] [--samples 2]      writes section `vocabulary`

Options are those of some blocks, whose mean depth should be the middle of the model, so that seconds per option are
those of the whole matrix. Everything a run does is included but choosing ranges, which each worker does once; CPU
seconds of one thread are divided by those of a forward pass of the same samples, timed before and after.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from bench.results import table, write_section
from bench.wavefront import timed
from hpcmpq.calibrate.sums import add_up, products
from hpcmpq.formats import Quantizer
from hpcmpq.models.chain.places import places_of_groups
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.linear_head import find_linear_head
from hpcmpq.models.load import forward, load_model
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.objective import OBJECTIVES
from hpcmpq.planning.part_times import time_parts, total_seconds
from hpcmpq.planning.seen_pass import share_of_pass
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.response.wavefront import Wavefront
from hpcmpq.sensitivity.secant import measure
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import CalibrationConfig, Config, GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace

FORMATS = ("int2", "int3", "int4", "int8")
LENGTH, PROBES = 128, 4
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--blocks", default="4,25")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--per-pass", type=int, default=1)
    parser.add_argument("--formats", default=",".join(FORMATS))
    args = parser.parse_args()
    formats = tuple(args.formats.split(","))
    torch.set_num_threads(1)
    keep_freed_memory()
    model = load_model(ModelConfig(path=str(args.model)))
    samples = tokens_of(args.model, args.text, args.samples)
    blocks = {int(block) for block in args.blocks.split(",")}
    groups = tuple(
        group for group in find_groups(model, GroupsConfig(), samples[:1].inputs) if group.block in blocks
    )
    space = SearchSpace(groups, (formats,) * len(groups))
    variants = Variants(model, space, Quantizer(range="absmax"))
    for group in groups:
        for name in formats:
            variants.quantized(group, name)
    engine = make_engine("auto", variants, samples[:1].inputs)
    assert isinstance(engine, Wavefront)
    head = find_linear_head(model, samples[:1].inputs)
    exact = Subject(model, space, variants, OBJECTIVES["kl"], PROBES, args.per_pass, 0, engine)
    rows, found = [], []
    config = Config(
        ModelConfig(), CalibrationConfig(""), formats=formats, quantizer=Quantizer(range="absmax")
    )
    for name, subject in (
        ("before the head", dataclasses.replace(exact, head=head)),
        ("all logits", exact),
    ):
        batch = samples[: args.per_pass]
        one_s = timed(lambda batch=batch: forward(model, batch.inputs), 5)
        start = time.process_time()
        arrays, _, _ = add_up(products(measure(subject, samples, range(len(groups)), 0)))
        used_s = time.process_time() - start
        one_s = (one_s + timed(lambda batch=batch: forward(model, batch.inputs), 5)) / 2
        passes = -(-len(samples) // args.per_pass)
        times = time_parts(model, engine.chain, subject.head, config, space, batch, PROBES)
        places = places_of_groups(engine.chain, model, groups)
        shares = [share_of_pass(place) for place in places for _ in formats]
        predicted_s = (total_seconds(times, shares, passes, False) - times.ranges) / times.forward * one_s
        found.append(arrays)
        # Once per pass, and so of no account in the whole matrix, comes one forward pass.
        per_option = (used_s / one_s / passes - 1) / space.num_options
        predicted = (predicted_s / one_s / passes - 1) / space.num_options
        products_share = share_of_products(subject, samples, len(groups))
        rows.append(
            [name, f"{per_option:.3f}", f"{predicted:.3f}", f"{used_s:.1f}", f"{one_s:.3f}"]
            + [f"{100 * products_share:.0f} %"]
        )
    text = (
        f"## Large vocabularies\n\n`python -m bench.vocabulary`: {args.model.name}, {model.config.vocab_size:,} "
        f"words, blocks {args.blocks}, {space.num_options} options ({', '.join(formats)}), "
        f"{len(samples)} samples of {LENGTH} tokens, {args.per_pass} a pass, {PROBES} probes, one thread, "
        f"load average {load():.0f}.\n\n"
        + table(  # fmt: skip
            [
                "losses and features",
                "forward passes per option",
                "predicted",
                "CPU s",
                "CPU s of a forward",
                "of a profile, matrix products",
            ],
            rows,
        )
        + "\n\n"
        + errors(found[0], found[1], space, len(samples))
    )
    print(text)
    write_section("vocabulary", text)


def share_of_products(subject: Subject, samples: Samples, num_groups: int) -> float:
    """What torch's profiler finds of the CPU time of a whole pass in matrix products, the head's among them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        add_up(products(measure(subject, samples[: subject.samples_per_pass], range(num_groups), 0)))
    used = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(used.get(name, 0.0) for name in PRODUCTS) / sum(used.values())


def tokens_of(model: Path, text: Path, count: int) -> Samples:
    """The first `count` samples of a text."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(model)(text.read_text(encoding="utf-8")[: 16 * count * LENGTH])[
        "input_ids"
    ]
    return Samples({"input_ids": torch.tensor(ids[: count * LENGTH]).reshape(count, LENGTH)})


def load() -> float:
    """Load average of the last minute."""
    return float(Path("/proc/loadavg").read_text(encoding="utf-8").split()[0])


def errors(
    estimated: dict[str, np.ndarray], exact: dict[str, np.ndarray], space: SearchSpace, num_samples: int
) -> str:
    """What estimating adds to the error of `linear`, beside the standard error of the samples."""
    names = [option.format for option in space.options]
    error_P = (estimated["linear"] - exact["linear"]) / num_samples
    mean_P = exact["linear"] / num_samples
    variance_P = (exact["linear_square"] / num_samples - mean_P**2) / max(1, num_samples - 1)
    rows = []
    for name in dict.fromkeys(names):
        own = np.array([found == name for found in names])
        rms = [
            float(np.sqrt((values[own] ** 2).mean()))
            for values in (error_P / mean_P, np.sqrt(variance_P) / mean_P)
        ]
        rows.append([name, f"{rms[0]:.3f}", f"{rms[1]:.3f}", f"{rms[0] / rms[1]:.2f}"])
    scale_PP = np.sqrt(np.outer(np.diag(exact["quad"]), np.diag(exact["quad"])))
    largest = float(np.abs((estimated["quad"] - exact["quad"]) / scale_PP).max())
    header = ["linear", "error of estimating, rms, relative", "standard error of the samples", "ratio"]
    return f"{table(header, rows)}\n\nLargest difference of H_pq / √(H_pp H_qq): {largest:.1e}."


if __name__ == "__main__":
    main()
