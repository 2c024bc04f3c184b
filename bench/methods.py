"""Every sensitivity method on three trained models: held-out KL at equal bits, rank, ratio and cost.

    python -m bench.methods                                   writes section `methods` of bench/RESULTS.md and the plot
    python -m bench.methods --configs configs/digits.yaml     only this model; other rows stay as they are
    python -m bench.methods --pairwise                        also measured pairs where there are more than 60 options
    python -m bench.methods --configs configs/mixture.yaml --name mixture     section `methods_mixture`, without a plot

Same quantizer, samples, solver and solver seconds for all. Rank and ratio compare predictions with measured KL on the
calibration samples (see bench.rank; ratio over mixed int2..int4); losses in the table are on evaluation samples.
Seconds are CPU seconds on one thread, forward-equivalents the same over those of one pass of all samples.
"""

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.rank import PER_RANGE, random_choices, ranges_of, rank
from bench.results import ROOT, table, write_section
from bench.workload import CACHE, Calibrated, Judge, calibrated
from hpcmpq.errors import Infeasible
from hpcmpq.executors.in_process import InProcess
from hpcmpq.models.load import forward
from hpcmpq.problem import Problem
from hpcmpq.quadratic import quadratic_increase
from hpcmpq.refine import stage as refine_stage
from hpcmpq.sensitivity import METHODS
from hpcmpq.solve.formulate import make_problem, uniform_choices, uniform_hint
from hpcmpq.solve.outcome import solve_problem
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.run_dir import RunDir

LIMITS = (2.25, 2.5, 3.0, 3.5, 4.0, 5.0)
CONFIGS = ("configs/quickstart.yaml", "configs/digits.yaml", "configs/vit.yaml")
SOLVE_S = 10.0
MOST_PAIRED = 60
PLOT = " ![held-out KL by bits](methods.svg)"
REFINED, DROPPED, UNIFORM = "secant, refined", "secant, cross terms dropped", "uniform bits"


@dataclass(frozen=True)
class Row:
    """One method on one model.

    Attributes:
        losses: Held-out KL by budget.
        stderrs: Standard error over samples of its difference from that of secant with refinement.
    """

    model: str
    method: str
    losses: list[float | None]
    stderrs: list[float | None]
    rank: float | None = None
    ratio: float | None = None
    seconds: float | None = None
    forwards: float | None = None
    peak_mib: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pairwise", action="store_true")
    parser.add_argument("--name", help="of a section of its own")
    args = parser.parse_args()
    section = "methods" if args.name is None else f"methods_{args.name}"
    path = CACHE / f"{section}.json"
    rows = {}
    if path.exists():
        rows = {
            (row["model"], row["method"]): Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))
        }
    for config in args.configs:
        for row in rows_of(config, args.methods, args.pairwise):
            rows[row.model, row.method] = row
            print(*cells(row), sep=" | ", flush=True)
            path.write_text(json.dumps([asdict(row) for row in rows.values()]), encoding="utf-8")
    command = "python -m bench.methods"
    if args.name is not None:
        command += f" --configs {' '.join(args.configs)} --name {args.name}"
        if args.methods != list(METHODS):
            command += f" --methods {' '.join(args.methods)}"
    write(list(rows.values()), section, command)


def rows_of(config: str, methods: list[str], pairwise: bool) -> list[Row]:
    """All methods on one model."""
    first = calibrated(config, "secant")
    judge, space = Judge(first.config, first.plan), first.plan.space
    choices = random_choices(space)
    measured = judge.losses(choices, judge.splits.calibration)
    mixed = ranges_of(space).index((2, 4)) * PER_RANGE
    forward_s = seconds_of_forward(judge)
    model = Path(config).stem

    def row(
        name: str, run: Calibrated, found: list[np.ndarray | None], quad_PP: np.ndarray, extra_s: float = 0.0
    ) -> Row:
        predicted = np.array([quadratic_increase(run.quadratic.linear_P, quad_PP, c) for c in choices])
        those = slice(mixed, mixed + PER_RANGE)
        seconds = run.seconds + extra_s
        by_method[name] = losses_of(judge, found)
        return Row(
            model, name, [], [], rank(predicted, measured),
            float(predicted[those].mean() / measured[those].mean()),
            seconds, seconds / forward_s, run.peak_bytes / 2**20,
        )  # fmt: skip

    rows: list[Row] = []
    by_method: dict[str, list[np.ndarray | None]] = {}
    for name in methods:
        if name == "pairwise" and space.num_options > MOST_PAIRED and not pairwise:
            continue
        for objective in ("kl", "ce") if name == "hessian" else ("kl",):
            run = calibrated(config, name, objective)
            problems = [problem_at(run, limit) for limit in LIMITS]
            found = [solved(run, problem) for problem in problems]
            label = name if objective == "kl" else f"{name} of ce"
            rows.append(row(label, run, found, run.quadratic.quad_PP))
            if name == "secant":
                dropped = [solved(run, problem_at(run, limit, drop=True)) for limit in LIMITS]
                rows.append(row(DROPPED, run, dropped, np.zeros_like(run.quadratic.quad_PP)))
                start = time.process_time()
                refined = [refine(run, limit) for limit in LIMITS]
                extra_s = (time.process_time() - start) / len(LIMITS)
                rows.append(row(REFINED, run, refined, run.quadratic.quad_PP, extra_s))
    uniform = [list(feasible_uniform(first, problem_at(first, limit)).values())[-1:] for limit in LIMITS]
    by_method[UNIFORM] = losses_of(judge, [c[0] if c else None for c in uniform])
    rows.append(Row(model, UNIFORM, [], []))
    return [
        replace(
            row,
            losses=[None if loss_N is None else float(loss_N.mean()) for loss_N in by_method[row.method]],
            stderrs=[
                None if loss_N is None or base_N is None else stderr(loss_N - base_N)
                for loss_N, base_N in zip(by_method[row.method], by_method[REFINED], strict=True)
            ],
        )
        for row in rows
    ]


def stderr(value_N: np.ndarray) -> float:
    """Standard error of a mean."""
    return float(value_N.std(ddof=1) / len(value_N) ** 0.5)


def problem_at(run: Calibrated, limit: float, drop: bool = False) -> Problem:
    """The problem of a run within average payload bits."""
    settings = settings_of(run.plan, drop_cross_terms=drop, time_limit_s=SOLVE_S)
    return make_problem(run.plan, run.quadratic, {"weight_bits": limit}, settings)


def solved(run: Calibrated, problem: Problem) -> np.ndarray | None:
    """Its solution by the default solver."""
    settings = settings_of(run.plan, time_limit_s=SOLVE_S)
    return solve_problem(problem, run.quadratic, settings, uniform_hint(run.plan.space, problem)).choice_G


def feasible_uniform(run: Calibrated, problem: Problem) -> dict[str, np.ndarray]:
    """Uniform choices within the budget, from few to many bits."""
    return {n: c for n, c in uniform_choices(run.plan.space).items() if problem.is_feasible(c)}


def refine(run: Calibrated, limit: float) -> np.ndarray | None:
    """What `hpcmpq refine` makes of the solution within average payload bits, in a copy of the run."""
    with tempfile.TemporaryDirectory() as folder:
        copied = RunDir(Path(folder) / "run")
        shutil.copytree(run.run.path, copied.path)
        try:
            solve(copied, {"weight_bits": limit}, settings_of(run.plan, time_limit_s=SOLVE_S))
        except Infeasible:
            return None
        solution = refine_stage.refine(copied, InProcess(), lambda done, most: None)
    return run.plan.space.choice(solution["assignment"])


def losses_of(judge: Judge, choices: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """Held-out KL of every sample by choice, where there is one."""
    found = iter(judge.per_sample([c for c in choices if c is not None], judge.splits.evaluation))
    return [None if choice is None else next(found) for choice in choices]


def seconds_of_forward(judge: Judge) -> float:
    """CPU seconds of one forward pass of all calibration samples."""
    samples, per_pass, model = (
        judge.splits.calibration,
        judge.config.calibration.samples_per_pass,
        judge.variants.model,
    )
    times = []
    for _ in range(5):
        start = time.process_time()
        for first in range(0, len(samples), per_pass):
            forward(model, samples[first : first + per_pass].inputs)
        times.append(time.process_time() - start)
    return min(times)


def cells(row: Row) -> list[str]:
    """A row as text."""
    numbers = [
        (row.rank, "{:.3f}"), (row.ratio, "{:.2f}"), (row.seconds, "{:.1f}"), (row.forwards, "{:.0f}"),
        (row.peak_mib, "{:.0f}"),
    ]  # fmt: skip
    return [
        row.model,
        row.method,
        *("" if loss is None else f"{loss:.4f}" for loss in row.losses),
        *("" if value is None else form.format(value) for value, form in numbers),
    ]


def verdicts(rows: list[Row]) -> list[str]:
    """Where secant with refinement is not the best, by how much and beaten by what."""
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        own = next((row for row in rows if (row.model, row.method) == (model, REFINED)), None)
        for place, limit in enumerate(LIMITS):
            others = [
                r for r in rows if r.model == model and r.method != REFINED and r.losses[place] is not None
            ]
            if own is None or own.losses[place] is None or not others:
                continue
            best = min(others, key=lambda r: r.losses[place] or 0.0)
            excess = 100 * ((own.losses[place] or 0.0) / max(best.losses[place] or 0.0, 1e-300) - 1)
            if excess > 0:
                difference = (own.losses[place] or 0.0) - (best.losses[place] or 0.0)
                lines.append(
                    f"- {model}, {limit:g} bits: {REFINED} is {excess:.1f} % above {best.method}, a difference of "
                    f"{difference:.4f} with a standard error of {best.stderrs[place]:.4f}"
                )
    return lines or ["- nowhere"]


def write(rows: list[Row], section: str, command: str) -> None:
    """The section, and the plot of the one that has all models."""
    header = [
        "model",
        "method",
        *(f"{limit:g} b" for limit in LIMITS),
        "rank",
        "ratio",
        "CPU s",
        "forward-eq.",
        "peak MiB",
    ]
    text = (
        f"## Sensitivity methods side by side{section.removeprefix('methods').replace('_', ': ')}\n\n"
        f"`{command}`: held-out KL of the assignment that each "
        f"method chooses at equal bits; {SOLVE_S:g} s per solve; cost of the whole calibration on one thread (and "
        f"one refinement where it is refined). Measured pairs only up to {MOST_PAIRED} options unless "
        f"`--pairwise` was given.{PLOT if section == 'methods' else ''}\n\n"
        f"{table(header, [cells(row) for row in rows])}\n\nWhere {REFINED} is not the lowest:\n\n"
        + "\n".join(verdicts(rows))
    )
    print(text)
    write_section(section, text)
    if section == "methods":
        plot(rows, ROOT / "bench" / "methods.svg")


def plot(rows: list[Row], path: Path) -> None:
    """Held-out KL over that of the refined secant, by bits, a panel per model."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "methods"
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(row.model for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        own = next(row for row in rows if (row.model, row.method) == (model, REFINED))
        for row in rows:
            pairs = [
                (limit, loss / base)
                for limit, loss, base in zip(LIMITS, row.losses, own.losses, strict=True)
                if row.model == model and loss and base
            ]
            if pairs:
                style = {"color": "black", "linewidth": 2} if row.method == REFINED else {"linewidth": 1}
                axis.plot(*zip(*pairs, strict=True), marker=".", label=row.method, **style)  # type: ignore[arg-type]
        axis.set(title=model, xlabel="payload bits per weight", ylim=(0.8, 2.5))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"held-out KL over {REFINED}")
    handles = {
        label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
