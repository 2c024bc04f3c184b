"""Cost of the whole P × P secant matrix in forward passes of the model: wavefront, whole passes, measured pairs.

    python -m bench.wavefront [--samples 64] [--model configs/quickstart_model]      writes section `wavefront`

One forward-equivalent is one whole-model forward pass of the same samples. Every row includes all that a run
does: choosing ranges once, quantizing, losses, features, and per-sample products for standard errors. The forward
pass is timed between the passes of each row, so that a machine that others use slows both alike.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from bench.results import table, write_section
from hpcmpq.calibrate.sums import add_up, products
from hpcmpq.examples.topics import training_text
from hpcmpq.formats import Quantizer
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import forward, load_model
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.objective import OBJECTIVES
from hpcmpq.quantized.variants import Variants
from hpcmpq.response.engine import make_engine
from hpcmpq.sensitivity.secant import measure
from hpcmpq.sensitivity.subject import Subject
from hpcmpq.settings import GroupsConfig, ModelConfig
from hpcmpq.space import SearchSpace

FORMATS = tuple(f"int{bits}" for bits in range(2, 9))
PER_PASS, LENGTH = 4, 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="configs/quickstart_model")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--whole-samples", type=int, default=8, help="of the rows with whole passes")
    parser.add_argument("--pairs", type=int, default=100, help="pairs measured for the extrapolation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    model = load_model(ModelConfig(path=args.model))
    tokens = torch.tensor(list(training_text().encode()[: args.samples * LENGTH]))
    samples = Samples({"input_ids": tokens.reshape(args.samples, LENGTH)})
    groups = find_groups(model, GroupsConfig(), samples[:1].inputs)
    space = SearchSpace(groups, (FORMATS,) * len(groups))
    lines = []
    num_options = space.num_options
    for name, kind, low_precision, count in (
        ("wavefront", "auto", None, args.samples),
        ("wavefront, products: bfloat16", "auto", torch.bfloat16, args.samples),
        ("whole passes", "whole", None, args.whole_samples),
    ):
        # Products are patched in a copy, so that the forward passes beside it are those of the model as it is.
        subject_model = model if low_precision is None else copy.deepcopy(model)
        variants = Variants(subject_model, space, Quantizer())
        start = time.perf_counter()
        for group in groups:
            for format_name in FORMATS:
                variants.quantized(group, format_name)
        choosing_s = time.perf_counter() - start
        engine = make_engine(
            kind,  # type: ignore[arg-type]
            variants,
            samples[:2].inputs,
            low_precision=low_precision,
            exact_original=True,
        )
        subject = Subject(subject_model, space, variants, OBJECTIVES["kl"], None, PER_PASS, 0, engine)
        passes, wall, cpu = secant_passes(subject, samples[:count], model)
        lines.append(row(f"secant, {name}", passes, num_options, wall, cpu, count))
        if (kind, low_precision) == ("auto", None):
            once = choosing_s / (wall / passes) / (args.samples / PER_PASS)
            lines.append(
                [
                    "choosing ranges, once a worker",
                    f"{once:.1f}",
                    f"{once / num_options:.3f}",
                    f"{choosing_s:.2f}",
                    "",
                    "",
                ]
            )
    passes, wall, cpu = pair_passes(variants, samples[:PER_PASS], args.pairs)
    total = passes / args.pairs * num_options * (num_options - 1) / 2
    lines.append(row(f"pairs, from {args.pairs} measured", total, num_options, wall, cpu, PER_PASS))
    header = ["", "forward-equivalents", "over P", "wall s of a pass", "CPU s", "samples"]
    text = (
        f"## Cost of the whole P × P matrix\n\n`python -m bench.wavefront`: {len(groups)} groups × {len(FORMATS)} "
        f"options, P = {space.num_options}, {PER_PASS} × {LENGTH} tokens a pass, one thread.\n\n{table(header, lines)}"
    )
    print(text)
    write_section("wavefront", text)


def secant_passes(subject: Subject, samples: Samples, model: torch.nn.Module) -> tuple[float, float, float]:
    """Passes of `model` that one pass's P × P matrix costs (median), and its wall and CPU seconds."""

    def one_pass(start: int) -> Callable[[], object]:
        batch = samples[start : start + PER_PASS]
        return lambda: add_up(products(measure(subject, batch, range(len(subject.space.groups)), start)))

    steps = (one_pass(start) for start in range(0, len(samples), PER_PASS))
    return in_forwards(steps, lambda: forward(model, samples[:PER_PASS].inputs))


@torch.no_grad()
def pair_passes(variants: Variants, samples: Samples, count: int) -> tuple[float, float, float]:
    """Forward-equivalents, wall and CPU seconds of `count` measured pairs of options."""
    space = variants.space
    generator = torch.Generator().manual_seed(0)
    pairs = []
    while len(pairs) < count:
        p, q = torch.randint(space.num_options, (2,), generator=generator).tolist()
        if space.options[p].group != space.options[q].group:
            pairs.append({space.groups[o.group].name: o.format for o in (space.options[p], space.options[q])})
    z0_NTV = forward(variants.model, samples.inputs)

    def step() -> None:
        for pair in pairs:
            with variants.assigned(pair):
                OBJECTIVES["kl"].value(forward(variants.model, samples.inputs), z0_NTV, None)

    return in_forwards(iter([step]), lambda: forward(variants.model, samples.inputs))


@torch.no_grad()
def in_forwards(
    steps: Iterator[Callable[[], object]], one_forward: Callable[[], object]
) -> tuple[float, float, float]:
    """Median over steps of its time in forward passes timed before and after it, its wall and CPU seconds."""
    for _ in range(3):
        one_forward()
    ratios, walls, cpus = [], [], []
    before = timed(one_forward)
    for step in steps:
        start, start_cpu = time.perf_counter(), time.process_time()
        step()
        walls.append(time.perf_counter() - start)
        cpus.append(time.process_time() - start_cpu)
        after = timed(one_forward)
        ratios.append(cpus[-1] / ((before + after) / 2))
        before = after
    return statistics.median(ratios), statistics.median(walls), statistics.median(cpus)


def timed(function: Callable[[], object], repeats: int = 15) -> float:
    """Median CPU seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def row(name: str, passes: float, num_options: int, wall: float, cpu: float, samples: int) -> list[str]:
    """One line of the table."""
    return [name, f"{passes:.1f}", f"{passes / num_options:.3f}", f"{wall:.2f}", f"{cpu:.2f}", str(samples)]


if __name__ == "__main__":
    main()
