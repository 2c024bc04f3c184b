"""NVFP4, FP8 and 16 bits in one model at equal bytes: ours, uniform, and ModelOpt's auto_quantize. SmolLM2.

    python -m bench.peers.floats

Both search the same tied groups on the same samples: ours formats as vLLM computes them on a Blackwell GPU, weights and
inputs rounded; ModelOpt its own presets NVFP4_DEFAULT_CFG and FP8_DEFAULT_CFG and no quantization. ModelOpt counts
NVFP4 as 4.5 bits and FP8 as 8; here a scale of every channel in FP8 counts too, so its answers are larger than its
budget by up to 0.03 bits. So ours is solved twice, for the budget and for exactly the bytes of ModelOpt's answer. One
mix is exported in two layouts and read back. All is kept under runs/bench/peers, and the same command goes on.

Writes section `peers_floats` of bench/RESULTS.md.
"""

import argparse
import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Mapping

import torch

from bench.peers.__main__ import TEXTS, texts_of
from bench.peers.calibration import IMPORT_PATHS, Calibrated, calibrated, cpu_seconds, seconds_of
from bench.peers.choices import METHODS, OURS, Contest
from bench.peers.foreign import foreign_assignments
from bench.peers.judge import Judge
from bench.peers.refined import share
from bench.peers.table import Results, difference, section
from bench.presets.original import original
from bench.results import table, write_section
from hpcmpq.export import export, weight_bytes
from hpcmpq.models.data.samples import Samples
from hpcmpq.models.load import load_model
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.quantized.variants import Variants, open_variants
from hpcmpq.settings import Config, GroupsConfig, Quantizer
from hpcmpq.solve.formulate import cost_values, uniform_choices
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.of_solution import VERIFICATION
from hpcmpq.store.run_dir import RunDir

FORMATS = ("nvfp4", "fp8_e4m3", "bf16")

COST = "average_bits"
"""Bits per weight with scales."""

OWN = ("uniform", OURS, "ours: secant", "ours: cross terms dropped")
"""Methods of `bench.peers.choices` for every budget."""

THEIRS = "ModelOpt"

EQUAL = f"{OURS}, in ModelOpt's bytes"
"""Ours again, for the bytes of ModelOpt's answer."""

Assignments = dict[str, dict[float, dict[str, str]]]
"""{method: {bits asked for: {group name: format name}}}."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", default="4.75,5.25,6", help="bits per weight, scales included")
    parser.add_argument("--export", type=float, default=5.25, help="the budget whose mix is exported")
    parser.add_argument("--held-out", type=int, default=4, help="samples of selections")
    parser.add_argument("--judged", type=int, default=24, help="samples of each text")
    args = parser.parse_args()
    args.text = TEXTS
    torch.set_num_threads(1)
    keep_freed_memory()
    made = calibrated("smollm2-floats", float_config())
    splits, texts = texts_of(args, made.config)
    model = load_model(made.config.model, import_paths=IMPORT_PATHS)
    variants = open_variants(made.run, made.plan, model, check_outputs=False)
    budgets = [*(float(limit) for limit in args.budgets.split(",")), bits_of_uniform(made, "fp8_e4m3")]
    held_out = judge_of(made, variants, "held_out", splits.held_out[: args.held_out])
    chosen = choose(made, splits.calibration, held_out, budgets)
    results = Results("nearest")
    for text, samples in texts.items():
        judge = judge_of(made, variants, text, samples)
        with cpu_seconds(made.kept, "judge"):
            results.originals[text] = judge.verdict({})
            results.verdicts[text] = {
                method: {limit: judge.verdict(assignment) for limit, assignment in by_budget.items()}
                for method, by_budget in chosen.items()
            }
    results.notes += [
        equal_bytes(made, chosen, results, budgets),
        exports(made, chosen[OURS][args.export], args.export),
        "CPU seconds, one thread: "
        + ", ".join(f"{part} {seconds:.0f}" for part, seconds in seconds_of(made.kept).items()),
    ]
    calibration = made.config.calibration
    facts = (
        f"{len(made.plan.space.groups)} groups, tied as vLLM fuses them; formats {', '.join(FORMATS)}, which round "
        f"weights and inputs; calibrated on {calibration.num_samples} samples of {calibration.sequence_length} tokens "
        f"of {calibration.data.rpartition('/')[2]}, selections on {args.held_out} held-out samples. Budgets are bits "
        "per weight with scales (nvfp4 4.5, fp8_e4m3 8.03, bf16 16), the last that of uniform fp8_e4m3; `uniform` is "
        f"nvfp4 but there. {THEIRS}'s auto_quantize (0.47, gradient) searched its own presets on the same samples, on "
        "a CPU, where its kernel of NVFP4 does not run and its own packing took its place. All are judged under this "
        f"package's rounding, on {args.judged} samples of each text; differences are to the first row, with 95 % "
        "intervals paired by sample; the lowest is bold."
    )
    text = section(
        "NVFP4, FP8 and 16 bits mixed: smollm2", "python -m bench.peers.floats", facts, [results], budgets
    )
    print(text)
    write_section("peers_floats", text)


def float_config() -> Config:
    """`configs/smollm2.yaml` with formats of floating point for vLLM on a Blackwell GPU."""
    return dataclasses.replace(
        original(plain=True),
        target="vllm",
        gpu="b200",
        formats=FORMATS,
        groups=GroupsConfig(),
        quantizer=Quantizer(group_size=64),
        budgets={},
    )


def bits_of_uniform(made: Calibrated, name: str) -> float:
    """Bits per weight of a uniform format, rounded up to three digits."""
    return math.ceil(1000 * cost_values(made.plan, uniform_choices(made.plan.space)[name])[COST]) / 1000


def judge_of(made: Calibrated, variants: Variants, name: str, samples: Samples) -> Judge:
    """The judge on some samples, with inputs rounded as well as weights."""
    return Judge(variants, samples, made.kept.path / "judged" / f"{name}-{samples.digest()[:8]}")


def choose(made: Calibrated, samples: Samples, held_out: Judge, budgets: list[float]) -> Assignments:
    """What every method chooses; ours is kept by method and budget."""
    path, space = made.kept.file("choices.json"), made.plan.space
    kept = read_json(path, "python -m bench.peers.floats") if path.exists() else {}
    found: Assignments = {THEIRS: foreign_assignments(THEIRS, made, samples, budgets)}

    def take(name: str, method: str, limit: float, bits: float) -> None:
        if f"{limit:g}" not in kept.setdefault(name, {}):
            with cpu_seconds(made.kept, method):
                choice_G = METHODS[method](Contest(made, bits, held_out, COST), {})
            kept[name][f"{limit:g}"] = space.assignment(choice_G)
            write_json(path, kept)
        found.setdefault(name, {})[limit] = kept[name][f"{limit:g}"]

    for limit in budgets:
        for method in OWN:
            take(method, method, limit, limit)
        take(EQUAL, OURS, limit, bits_of(made, found[THEIRS][limit]))
    return found


def bits_of(made: Calibrated, assignment: Mapping[str, str]) -> float:
    """Bits per weight, scales included."""
    return cost_values(made.plan, made.plan.space.choice(dict(assignment)))[COST]


def equal_bytes(made: Calibrated, chosen: Assignments, results: Results, budgets: list[float]) -> str:
    """ModelOpt's answers beside ours of exactly as many bytes or fewer."""
    rows = []
    for limit in budgets:
        theirs, ours = chosen[THEIRS][limit], chosen[EQUAL][limit]
        above = [difference(found[EQUAL][limit], found[THEIRS][limit]) for found in results.verdicts.values()]
        row = [
            f"{limit:g}",
            f"{bits_of(made, theirs):.4f}",
            f"{bits_of(made, ours):.4f}",
            menu(theirs),
            menu(ours),
        ]
        rows.append([*row, *above])
    head = ["bits asked for", f"bits: {THEIRS}", "ours", f"groups in {'/'.join(FORMATS)}: {THEIRS}", "ours"]
    head += [f"KL of {THEIRS} above ours, {text}" for text in results.verdicts]
    return f"### In {THEIRS}'s bytes\n\n{table(head, rows)}"


def menu(assignment: Mapping[str, str]) -> str:
    """Groups in each format."""
    counts = Counter(assignment.values())
    return "/".join(str(counts[name]) for name in FORMATS)


def exports(made: Calibrated, assignment: Mapping[str, str], limit: float) -> str:
    """One mix in the two layouts that hold it: what reading back found, and the bytes of the weight files."""
    run = RunDir(made.kept.path / f"export-{limit:g}")
    share(made.run, run)
    shutil.copy(made.run.plan_path, run.plan_path)
    costs = cost_values(made.plan, made.plan.space.choice(dict(assignment)))
    write_json(run.solution_path, {"assignment": dict(assignment), "costs": costs})
    rows = []
    for name in ("compressed_tensors", "modelopt"):
        folder = run.path / "exports" / name
        if not folder.exists():
            with cpu_seconds(made.kept, "export"):
                print(export(run, name), flush=True)
        read = read_json(folder / VERIFICATION, "python -m bench.peers.floats")
        found = f"outputs differ by {read['difference']:.1e}" if read["verified"] else read["reason"]
        size, predicted = weight_bytes(folder), costs["size_bytes"]
        rows.append([name, f"{predicted:,.0f}", f"{size:,} ({size / predicted - 1:+.3%})", found])
    head = ["export", "bytes predicted", "bytes of the file", "read back"]
    return f"### Files of the mix of {limit:g} bits\n\n{table(head, rows)}"


if __name__ == "__main__":
    main()
