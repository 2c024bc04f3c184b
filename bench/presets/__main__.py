"""llama.cpp's own presets against mixes that are chosen here, at equal file size, judged by llama.cpp: SmolLM2.

    python -m bench.presets                 writes section `presets` of bench/RESULTS.md
    python -m bench.presets --plain         of the weights as they are, section `presets_plain`
    python -m bench.presets --alone         the presets' own types, with llama.cpp's codes and with ours, uncalibrated;
                                            section `presets_alone`, or `presets_plain_alone`

The SmolLM2 at hand has weights in Q4_1. On that grid Q4_1 loses nothing, and Q5_1, with 31 steps where there are 15,
moves all weights away from the middle of their block: layers come out 2 % too large, and Q5_K_M worse than Q4_K_M. So
every weight is moved by noise of at most half a step first: a model of much the same quality, on no grid, which presets
and mixes have to come close to alike.

A preset is what `llama_model_quantize` makes of that model in float32. A mix is planned with `target: llama_cpp` and a
budget `size_bytes` of the preset's file, calibrated on other text, solved and exported. llama.cpp runs both files, and
with `--weights` transformers reads the weights of both. All is kept under runs/bench, and the same command goes on.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from bench.engines.llama_cpp_python import BESIDE, BUILD, NAME, PACKAGE
from bench.environments import environment
from bench.peers.calibration import calibrated
from bench.presets.files import (
    MENU,
    PRESETS,
    mix_config,
    mix_file,
    preset_files,
    rounded_run,
    same_types_file,
    types_of,
    unquantized_file,
)
from bench.presets.judge import TEXTS, Judge, Judged
from bench.presets.original import original
from bench.results import table, write_section
from bench.workload import CACHE
from hpcmpq.models.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--calibration", type=int, default=4, help="samples of 128 tokens")
    parser.add_argument("--samples", type=int, default=12, help="of each text, of 128 tokens")
    parser.add_argument("--weights", action="store_true", help="judge the weights in float32 too")
    parser.add_argument("--again", action="store_true", help="round the solutions' weights again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    name = "presets_plain" if args.plain else "presets"
    folder = CACHE / "presets" / ("plain_files" if args.plain else "files")
    python = environment(CACHE / "engines" / PACKAGE, (*BESIDE, PACKAGE), settings=BUILD)
    config = mix_config(original(args.plain), args.calibration)
    presets = preset_files(python, unquantized_file(config, folder), folder)
    judge = Judge(folder / f"judge-{args.samples}", Path(str(config.model.path)), python, args.samples, 128)
    judge.prepare()
    if args.alone:
        rounded = rounded_run(name, config)
        own = {f"{rounded.path.name}-{p}": same_types_file(rounded, path) for p, path in presets.items()}
        found = judge.by_llama_cpp({**presets, **own})
        text = alone(args, judge, types_of(folder), {**presets, **own}, found)
        print(text)
        write_section(f"{name}_alone", text)
        return
    made = calibrated(name, config)
    mixes = {p: mix_file(made, p, path.stat().st_size, args.again) for p, path in presets.items()}
    files = presets | {
        f"mix-{made.kept.path.name}-{p}{'-again' * args.again}": path for p, path in mixes.items()
    }
    judged = {f"As {NAME} computes": judge.by_llama_cpp(files)}
    if args.weights:
        judged["Their weights in float32"] = judge.by_weights(files)
    ours = dict(zip(PRESETS, list(files)[len(PRESETS) :], strict=True))
    text = "\n\n".join(
        [
            f"## llama.cpp's presets and mixes of equal size: SmolLM2{', weights as they are' * args.plain}",
            facts(args, judge, types_of(folder), made.plan.space.groups),
            *(
                f"{how}:\n\n"
                + table(COLUMNS, [row(p, found, ours[p], sizes(p, presets, mixes)) for p in PRESETS])
                for how, found in judged.items()
            ),
        ]
    )
    print(text)
    write_section(name, text)


COLUMNS = (
    "preset", "file bytes: preset", "mix",
    *(f"{text}: {what}" for text in TEXTS for what in ("KL preset", "mix", "change", "perplexity preset", "mix")),
)  # fmt: skip


def sizes(preset: str, presets: dict[str, Path], mixes: dict[str, Path]) -> tuple[int, int]:
    return presets[preset].stat().st_size, mixes[preset].stat().st_size


def row(preset: str, found: dict[str, dict[str, Judged]], mix: str, num_bytes: tuple[int, int]) -> list[str]:
    """One line."""
    cells = [preset, f"{num_bytes[0]:,}", f"{num_bytes[1]:,} ({num_bytes[1] / num_bytes[0] - 1:+.2%})"]
    for text in TEXTS:
        theirs, ours = found[preset][text], found[mix][text]
        cells += [
            f"{theirs.kl_N.mean():.4f}",
            f"{ours.kl_N.mean():.4f}",
            change(theirs, ours),
            f"{theirs.perplexity:.3f}",
            f"{ours.perplexity:.3f}",
        ]
    return cells


def change(theirs: Judged, ours: Judged) -> str:
    """Of the KL, in per cent of the preset's, with its 95 % interval over samples that are compared in pairs."""
    difference_N = ours.kl_N - theirs.kl_N
    stderr = difference_N.std(ddof=1) / np.sqrt(len(difference_N))
    low, high = (100 * (difference_N.mean() + sign * 1.96 * stderr) / theirs.kl_N.mean() for sign in (-1, 1))
    return f"{100 * difference_N.mean() / theirs.kl_N.mean():+.1f} % ({low:+.1f} to {high:+.1f})"


def alone(
    args: argparse.Namespace,
    judge: Judge,
    types: dict[str, dict[str, int]],
    files: dict[str, Path],
    found: dict[str, dict[str, Judged]],
) -> str:
    """The section of the presets' own types."""
    rows = []
    for preset, ours in zip(PRESETS, list(files)[len(PRESETS) :], strict=True):
        given = ", ".join(f"{count} {kind}" for kind, count in types[preset].items() if kind != "F32")
        num_bytes = files[preset].stat().st_size, files[ours].stat().st_size
        rows.append([*row(preset, found, ours, num_bytes), given])
    return (
        f"## llama.cpp's presets with compensated codes: SmolLM2{', weights as they are' * args.plain}\n\n"
        f"`python -m bench.presets --alone{' --plain' * args.plain}`: SmolLM2{moved(args)}. Presets are what "
        "`llama_model_quantize` makes of the float32 file, without an importance matrix. Beside it every tensor has a "
        "type of as many bytes (iq4_nl for Q4_0 and Q4_K) and codes by `rounding: gptq`, fitted to 64 samples of other "
        f"text; nothing is searched. As {NAME} computes both. "
        f"{measured(args, judge)}; the change of the KL with its 95 % interval over samples in pairs.\n\n"
        f"{table([*(c.replace('mix', 'our codes') for c in COLUMNS), 'tensors of the preset'], rows)}"
    )


def moved(args: argparse.Namespace) -> str:
    """What was done to the weights."""
    how = " whose weights are moved by noise of at most half a step of the Q4_1 that they come in"
    return "" if args.plain else how


def measured(args: argparse.Namespace, judge: Judge) -> str:
    """What is judged."""
    originals = ", ".join(f"{j.perplexity:.3f} on {text}" for text, j in judge.unquantized().items())
    return (
        f"{args.samples} samples of 128 tokens of each text; KL in nats a token from the model in float32, whose "
        f"perplexity is {originals}"
    )


def facts(args: argparse.Namespace, judge: Judge, types: dict[str, dict[str, int]], groups: tuple) -> str:
    """What the tables are of."""
    given = "; ".join(
        f"{preset}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items() if kind != "F32")
        for preset, kinds in types.items()
    )
    options = " --plain" * args.plain + " --again" * args.again
    again = ", then rounded again by qep where that was kept" * args.again
    return (
        f"`python -m bench.presets{options}`: SmolLM2{moved(args)}. Presets are what `llama_model_quantize` makes of "
        f"the float32 file, without an importance matrix ({given}: of layers, the down projections alone have a "
        "multiple of 256 inputs, the others fall back to types in blocks of 32). "
        f"Mixes: {len(groups)} groups, embedding and head too, formats {', '.join(MENU)}, rounding gptq, calibrated by "
        f"secant on {args.calibration} samples of 128 tokens, solved for the bytes of the preset's "
        f"file{again}. "
        f"{measured(args, judge)}; the change of the KL with its 95 % interval over samples in pairs."
    )


if __name__ == "__main__":
    main()
