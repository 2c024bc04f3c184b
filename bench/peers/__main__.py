"""Peers side by side before one judge: who chooses best at equal bits, on the same samples, groups and formats.

    python -m bench.peers                                                 the quickstart's model
    python -m bench.peers --name smollm2 --model DIR --data TEXT --text prose=OTHER_TEXT
    python -m bench.peers ... --roundings gptq --budgets 3.5,4 --without ModelOpt,AutoScheme
    python -m bench.peers ... --rounds 1                                  ours refined too, one expansion a budget
    python -m bench.peers --name smollm2 --run RUN ...                    a run that `hpcmpq` has calibrated, as it is

Writes section `peers_NAME` of bench/RESULTS.md. Whatever is found is kept under runs/bench/peers, and the same command
goes on where it was stopped.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers.calibration import IMPORT_PATHS, Calibrated, calibrated, cpu_seconds, opened, seconds_of
from bench.peers.choices import METHODS, Contest
from bench.peers.costs import NAMES, PROBES, peer_costs
from bench.peers.foreign import PACKAGES, foreign_assignments
from bench.peers.judge import Judge
from bench.peers.refined import REFINED, refined
from bench.peers.table import Results, section
from bench.peers.weights import Weights, kept_weights
from bench.results import ROOT, write_section
from hpcmpq.config import read_config
from hpcmpq.models.data.samples import Samples, Splits
from hpcmpq.models.data.splits import load_splits
from hpcmpq.models.load import load_model
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.quantized.variants import open_variants
from hpcmpq.settings import Config, EvaluationConfig, GroupsConfig, ModelConfig, SensitivityConfig
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import replacing

BUDGETS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
TEXTS = ("prose=hpcmpq.examples.topics:evaluation_text", "code=bench.peers.texts:source_code")
TIE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    keep_freed_memory()
    budgets = sorted(float(limit) for limit in args.budgets.split(","))
    if args.run:
        runs = [opened(RunDir(path)) for path in args.run]
    else:
        runs = [
            calibrated(f"{args.name}-{rounding}", config_of(args, rounding))
            for rounding in args.roundings.split(",")
        ]
    results = [contest(args, made, budgets) for made in runs]
    calibration, group_size = runs[0].config.calibration, runs[0].config.quantizer.group_size
    facts = (
        f"{len(runs[0].plan.space.groups)} groups, tied as engines fuse them; formats "
        f"{', '.join(runs[0].plan.space.formats[0])} in groups of {group_size}; calibrated on "
        f"{calibration.num_samples} samples of {calibration.sequence_length} tokens of "
        f"{calibration.data.rpartition('/')[2]}, selections on "
        f"{min(args.held_out, calibration.held_out)} held-out samples, the same for all; budgets are payload "
        f"bits per weight. Judged on {args.judged} samples of each text; differences are to the first row, "
        "with 95 % intervals paired by sample; the lowest is bold."
        + (f" Ours is refined by at most {args.rounds} expansions a budget." if args.rounds else "")
        + (f" Not run: {args.without}." if args.without else "")
    )
    text = section(f"Peers side by side: {args.name}", "python -m bench.peers", facts, results, budgets)
    print(text)
    write_section(f"peers_{args.name}", text)


def arguments() -> argparse.Namespace:
    """What is to be compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="quickstart")
    parser.add_argument("--model", default=str(ROOT / "configs" / "quickstart_model"))
    parser.add_argument("--data", default="hpcmpq.examples.topics:calibration_text")
    parser.add_argument(
        "--text",
        action="append",
        help=f"NAME=FILE_OR_FACTORY to judge on; {' and '.join(TEXTS)} if none is given",
    )
    parser.add_argument("--run", action="append", type=Path, help="instead of a model and its data")
    parser.add_argument("--formats", default="int2,int3,int4,int8")
    parser.add_argument("--roundings", default="nearest,gptq")
    parser.add_argument("--budgets", default=",".join(f"{limit:g}" for limit in BUDGETS))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--judged", type=int, default=16)
    parser.add_argument("--per-pass", type=int, default=1, help="samples of a pass of the calibration")
    parser.add_argument(
        "--rounds", type=int, default=0, help="of refinement; without any, ours is not refined"
    )
    parser.add_argument("--without", default="", help=f"of {','.join(PACKAGES)}")
    return parser.parse_args()


def config_of(args: argparse.Namespace, rounding: str) -> Config:
    """The quickstart's configuration with another model, text, groups and rounding."""
    read = read_config(ROOT / "configs" / "quickstart.yaml")
    return dataclasses.replace(
        read,
        model=ModelConfig(path=args.model, device="cpu"),
        calibration=dataclasses.replace(
            read.calibration,
            data=args.data,
            num_samples=args.samples,
            held_out=args.held_out,
            sequence_length=args.length,
            samples_per_pass=args.per_pass,
            samples_per_unit=min(4, args.samples),
        ),
        groups=GroupsConfig(tie=TIE),
        formats=tuple(args.formats.split(",")),
        quantizer=dataclasses.replace(read.quantizer, rounding=rounding),
        sensitivity=SensitivityConfig("secant"),
        budgets={},
    )


def contest(args: argparse.Namespace, made: Calibrated, budgets: list[float]) -> Results:
    """Everything about one run."""
    splits, texts = texts_of(args, made.config)
    model = load_model(made.config.model, import_paths=IMPORT_PATHS)
    variants = open_variants(made.run, made.plan, model, check_outputs=False)
    with cpu_seconds(made.kept, "codes"):
        weights = kept_weights(made.kept, variants)
    path = made.kept.file("peer_costs.npz")
    if not path.exists():
        with cpu_seconds(made.kept, "costs of peers"), replacing(path) as attempt, attempt.open("wb") as file:
            np.savez(
                file, **peer_costs(variants, weights, splits.calibration, min(2, len(splits.calibration)), 0)
            )
    with np.load(path) as arrays:
        costs = {name: arrays[name] for name in NAMES}
    assignments = choose(args, made, weights, splits, costs, budgets)
    results = Results(made.config.quantizer.rounding)
    for text, samples in texts.items():
        judge = Judge(weights, samples, made.kept.path / "judged" / f"{text}-{samples.digest()[:8]}")
        with cpu_seconds(made.kept, "judge"):
            results.originals[text] = judge.verdict({})
            results.verdicts[text] = {
                method: {limit: judge.verdict(chosen) for limit, chosen in by_budget.items()}
                for method, by_budget in assignments.items()
            }
    results.notes.append(cost_note(made))
    return results


def texts_of(args: argparse.Namespace, config: Config) -> tuple[Splits, dict[str, Samples]]:
    """The run's samples, and those to judge on by the name of their text."""
    texts, splits = {}, None
    for pair in args.text or TEXTS:
        name, _, source = pair.partition("=")
        evaluation = EvaluationConfig(data=source, num_samples=args.judged)
        splits = load_splits(dataclasses.replace(config, evaluation=evaluation), IMPORT_PATHS)
        texts[name] = splits.evaluation
    assert splits is not None
    return splits, texts


def choose(
    args: argparse.Namespace, made: Calibrated, weights: Weights, splits: Splits, costs: dict[str, Any],
    budgets: list[float],
) -> dict[str, dict[float, dict[str, str]]]:  # fmt: skip
    """{method: {budget: assignment}}, kept by method and budget."""
    path = made.kept.file("choices.json")
    known = read_json(path, "python -m bench.peers") if path.exists() else {}
    samples = splits.held_out[: args.held_out]
    held_out = Judge(weights, samples, made.kept.path / "judged" / f"held_out-{samples.digest()[:8]}")
    space = made.plan.space

    def keep(method: str, limit: float, choice_G: np.ndarray) -> None:
        known.setdefault(method, {})[f"{limit:g}"] = space.assignment(choice_G)
        write_json(path, known)

    for limit in budgets:
        one = Contest(made, limit, held_out)
        for method, chooses in METHODS.items():
            if f"{limit:g}" not in known.get(method, {}):
                with cpu_seconds(made.kept, method):
                    keep(method, limit, chooses(one, costs))
        if args.rounds and f"{limit:g}" not in known.get(REFINED, {}):
            with cpu_seconds(made.kept, REFINED):
                keep(REFINED, limit, space.choice(refined(made, limit, args.rounds)))
    for name in PACKAGES:
        if name in args.without.split(","):
            continue
        found = foreign_assignments(name, made, splits.calibration, list(BUDGETS))
        for limit in budgets:
            choice_G = space.choice(found[limit])
            if Contest(made, limit, held_out).is_feasible(choice_G):
                keep(name, limit, choice_G)
            else:
                print(f"{name} exceeds {limit:g} bits and is left out there", flush=True)
    return {
        method: {float(limit): a for limit, a in by_budget.items() if float(limit) in budgets}
        for method, by_budget in known.items()
        if method not in args.without.split(",")
    }


def cost_note(made: Calibrated) -> str:
    """CPU seconds of every part of one run."""
    used = ", ".join(f"{part} {seconds:.0f}" for part, seconds in seconds_of(made.kept).items())
    return (
        f"CPU seconds with rounding {made.config.quantizer.rounding}, one thread: {used}. Costs of peers took one "
        f"forward and {PROBES + 1} backward passes of the calibration samples."
    )


if __name__ == "__main__":
    main()
