"""Ways to round at a solution, without and with re-expansion around it: held-out KL, and what other text says.

    python -m bench.rounding RUN [RUN ...]                  runs that `hpcmpq calibrate` and `hpcmpq reduce` have made
    python -m bench.rounding RUN --name smollm2 --budgets 2.5,3,3.5,4 --rounds 0,1 --methods gptq,gptaq,qep
    python -m bench.rounding ... --known                    what is kept, without measuring what is missing

Writes section `rounding_NAME` of bench/RESULTS.md. What is found is kept under runs/bench/peers, and the same command
goes on where it was stopped.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from bench.peers.calibration import Calibrated, opened
from bench.peers.refined import refined_run, share
from bench.results import table, write_section
from hpcmpq.evaluate import evaluate
from hpcmpq.models.memory import keep_freed_memory
from hpcmpq.rounding import METHODS
from hpcmpq.rounding.stage import reround
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", default="quickstart")
    parser.add_argument("--budgets", default="2.5,3,3.5,4")
    parser.add_argument("--rounds", default="0,1", help="of re-expansion")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--known", action="store_true", help="leave out what is not measured yet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    methods = args.methods.split(",")
    rows = []
    runs = [opened(RunDir(path)) for path in args.runs]
    for made in runs:
        for limit in map(float, args.budgets.split(",")):
            for rounds in map(int, args.rounds.split(",")):
                if args.known and not kept_path(made, limit, rounds, None).exists():
                    continue
                rows.append(row(made, limit, rounds, methods, args.known))
                print(" | ".join(map(str, rows[-1])), flush=True)
    plan, config = runs[0].plan, runs[0].config
    text = f"""## Rounding at the solution: {args.name}

`python -m bench.rounding`: {len(plan.space.groups)} groups, formats {", ".join(plan.space.formats[0])}, calibrated on
{config.calibration.num_samples} samples of {config.calibration.sequence_length} tokens; budgets are payload bits per
weight. Without expansions the answer is the best of the portfolio. KL in nats on {config.calibration.held_out} held-out
samples; of weights rounded again the change in per cent with the standard error of the paired difference. Other text:
KL / perplexity of the {config.evaluation.num_samples} samples of the evaluation (original {rows[0][-1]}), before
and rounded again where that was kept. CPU seconds of the expansions (0 where the solution was there), of one rounding.

""" + table(
        ["options' rounding", "bits", "expansions", "held-out KL", *(f"{name} again" for name in methods),
         "other text before", *(f"other text, {name}" for name in methods), "CPU s"],
        [cells[:-1] for cells in rows],
    )  # fmt: skip
    print(text)
    write_section(f"rounding_{args.name}", text)


def row(made: Calibrated, limit: float, rounds: int, methods: list[str], known: bool) -> list[str]:
    """Cells of one budget, and last the original's perplexity; what is not `known` stays empty."""
    before = found(made, limit, rounds, None)
    after = [
        found(made, limit, rounds, method)
        if kept_path(made, limit, rounds, method).exists() or not known
        else None
        for method in methods
    ]
    return [
        made.config.quantizer.rounding,
        f"{limit:g}",
        str(before["expansions"]),
        f"{before['held_out']:.4f}",
        *(
            f"{100 * a['difference'] / before['held_out']:+.1f} ± {100 * a['stderr'] / before['held_out']:.1f} %"
            if a
            else ""
            for a in after
        ),
        f"{before['kl']:.4f} / {before['perplexity']:.2f}",
        *(f"{a['kl']:.4f} / {a['perplexity']:.2f}" if a else "" for a in after),
        f"{before['seconds']:.0f}, {max((a['seconds'] for a in after if a), default=0.0):.0f}",
        f"{before['original']:.2f}",
    ]


def found(made: Calibrated, limit: float, rounds: int, method: str | None) -> dict[str, Any]:
    """What one solution measures with its own codes, or with those of a method; kept."""
    path = kept_path(made, limit, rounds, method)
    if path.exists():
        return dict(read_json(path, "python -m bench.rounding"))
    start = time.process_time()
    run = refined_run(made, limit, rounds)
    values: dict[str, Any] = {"seconds": time.process_time() - start}
    solution = read_solution(run)
    if method is None:
        values["held_out"] = solution["measured_loss"]
        values["expansions"] = len({move["round"] for move in solution["refine"]["history"]})
    else:
        run = _copy(made, run, f"rounded-{limit:g}-{rounds}-{method}")
        start = time.process_time()
        attempt = reround(run, method, None, lambda done, of: None)["reround"]["history"][-1]
        values |= {
            "difference": attempt["difference"],
            "stderr": attempt["difference_stderr"],
            "kept": attempt["kept"],
            "seconds": time.process_time() - start,
        }
    measured = evaluate(run)
    values |= {
        "kl": measured["kl"]["quantized"],
        "perplexity": measured["perplexity"]["quantized"],
        "original": measured["perplexity"]["original"],
    }
    write_json(path, values)
    return values


def kept_path(made: Calibrated, limit: float, rounds: int, method: str | None) -> Path:
    """Where `found` keeps its answer."""
    return made.kept.file(f"rounding-{limit:g}-{rounds}-{method}.json")


def _copy(made: Calibrated, run: RunDir, name: str) -> RunDir:
    """A run directory with the same plan and solution."""
    other = RunDir(made.kept.path / name)
    share(made.run, other)
    for path in (run.plan_path, run.solution_path):
        shutil.copy(path, other.path / path.name)
    return other


if __name__ == "__main__":
    main()
