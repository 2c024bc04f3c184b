"""Predicted and measured times of whole models, and what optimising measured time is worth (arXiv 2505.13060).

    python -m bench.time        writes section `time` of bench/RESULTS.md and bench/time_gain.svg

Everything is measured in turns, round by round, on one thread, so that drifts of the machine fall on all alike. With
`--clock cpu` the thread's own processor time is read instead of the wall clock: for machines that others use meanwhile.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.residual_cnn import residual_cnn
from bench.results import ROOT, table, write_section
from bench.workload import Judge, calibrated
from hpcmpq.formats import Quantizer
from hpcmpq.models.groups import find_groups
from hpcmpq.models.load import load_model
from hpcmpq.problem import Cost, Problem
from hpcmpq.quantized.losses import Comparison
from hpcmpq.settings import GroupsConfig, SolverConfig
from hpcmpq.solve.costs import size_bytes_cost
from hpcmpq.solve.costs.latency import latency_costs, mac_time_cost
from hpcmpq.solve.largest_gain import LossLimit, largest_gain
from hpcmpq.space import SearchSpace
from hpcmpq.timing import passes
from hpcmpq.timing.machine import describe_machine
from hpcmpq.timing.measure import Classes, measure_round, warm_up
from hpcmpq.timing.passes import TimedModel, time_whole, timed_model
from hpcmpq.timing.stage import phase_inputs, summarise

CONFIG = "configs/speed.yaml"
MAX_COMBINATIONS = 256
NUM_RANDOM = 12
NUM_LIMITS = 8
WHOLE_PER_ROUND = 2
COLOURS = {
    "time": "#0a5fc4",
    "MACs": "#b3530b",
    "memory": "#2e7d32",
    "random": "#8a94a3",
    "uniform": "#1c2430",
}


@dataclass(frozen=True)
class Subject:
    """A model on inputs, with its measured tables.

    Attributes:
        name: For the table.
        timed: With kernels.
        classes: What was measured of its sub-graphs.
        values: As in `time.json`.
    """

    name: str
    timed: TimedModel
    classes: Classes
    values: dict[str, Any]


def random_assignments(space: SearchSpace, count: int, seed: int) -> list[dict[str, str]]:
    """Assignments with a share of each format that is itself random."""
    random = np.random.default_rng(seed)
    assignments = []
    for _ in range(count):
        share = random.dirichlet(np.ones(len(space.formats[0])))
        assignments.append(
            {
                group.name: str(random.choice(names, p=share))
                for group, names in zip(space.groups, space.formats, strict=True)
            }
        )
    return assignments


def measure(
    name: str, timed: TimedModel, rounds: int, assignments: Sequence[Mapping[str, str]]
) -> tuple[Subject, np.ndarray]:
    """The tables of a model, and the measured seconds of whole assignments between their rounds."""
    classes = timed.classes(MAX_COMBINATIONS)
    warm_up(timed, classes)
    pieces = [timed.whole(assignment) for assignment in assignments]
    seconds: list[list[float]] = [[time_whole(timed, piece)] for piece in pieces]
    found = []
    random = np.random.default_rng(0)
    for number in range(rounds):
        found.append(measure_round(timed, classes, number))
        for _ in range(WHOLE_PER_ROUND):
            for place in random.permutation(len(pieces)):
                seconds[place].append(time_whole(timed, pieces[place]))
    values = summarise(timed, classes, found, timed.inputs)
    return Subject(name, timed, classes, values), np.array([np.median(s[1:]) for s in seconds])


def by_sub_graphs(subject: Subject, assignment: Mapping[str, str]) -> float:
    """Σ of the sub-graphs' measured times."""
    total = subject.values["shared_s"]
    for part in subject.values["parts"]:
        if part["groups"]:
            formats = [assignment[name] for name in part["groups"]]
            total += seconds_of(subject.values["classes"][part["class"]], formats)
    return float(total)


def by_layers(subject: Subject, assignment: Mapping[str, str]) -> float:
    """The original's time and, for every layer, what changing it alone changes."""
    total = subject.values["original_s"]
    for part in subject.values["parts"]:
        if part["groups"]:
            found = subject.values["classes"][part["class"]]
            original = ["fp32"] * len(part["groups"])
            for place, name in enumerate(part["groups"]):
                alone = [*original[:place], assignment[name], *original[place + 1 :]]
                total += seconds_of(found, alone) - seconds_of(found, original)
    return float(total)


def seconds_of(found: Mapping[str, Any], formats: Sequence[str]) -> float:
    return float(next(row["seconds"] for row in found["combinations"] if row["formats"] == list(formats)))


def accuracy_row(subject: Subject, assignments: Sequence[Mapping[str, str]], measured: np.ndarray) -> list:
    errors = [
        100 * np.abs(np.array([predict(subject, a) for a in assignments]) / measured - 1)
        for predict in (by_sub_graphs, by_layers)
    ]
    parts = [part for part in subject.values["parts"] if part["groups"]]
    return [
        subject.name,
        f"{len(parts)} ({len(subject.values['classes'])} kinds)",
        f"{1e3 * measured.min():.2f} to {1e3 * measured.max():.2f}",
        *(f"{np.median(error):.1f} % ({error.max():.1f} %)" for error in errors),
        f"{100 * subject.values['noise']:.1f} %",
    ]


def frontier(
    subject: Subject, judge: Judge, linear_P: np.ndarray, mean_square: float, time_limit_s: float
) -> list[tuple[str, float | None, dict[str, str]]]:
    """(series, limit, assignment) of every point: three gains over limits on the loss, random, uniform."""
    space = judge.plan.space
    times = {"phases": {"prefill": subject.values}, "generated_tokens": 0}
    gains: dict[str, Cost] = {
        "time": latency_costs(space, times)[0],
        "MACs": mac_time_cost(space),
        "memory": size_bytes_cost(space, judge.config.quantizer, judge.plan.fixed_bytes),
    }
    num_options = space.num_options
    problem = Problem(linear_P, np.zeros((num_options, num_options)), space.group_P)
    most = np.maximum.reduceat(linear_P, problem.offset_G).sum()
    settings = SolverConfig(time_limit_s=time_limit_s)
    points: list[tuple[str, float | None, dict[str, str]]] = []
    for value in np.geomspace(1e-3 * most, 0.7 * most, NUM_LIMITS):
        limit = LossLimit(float(value), "loss_mse", float(value / mean_square))
        for series, cost in gains.items():
            choice_G = largest_gain(problem, cost, limit, settings).choice_G
            assert choice_G is not None
            points.append((series, limit.given, space.assignment(choice_G)))
    points += [("random", None, a) for a in random_assignments(space, NUM_RANDOM, seed=2)]
    points += [("uniform", None, {g.name: name for g in space.groups}) for name in space.formats[0]]
    return points


def measured_gain(timed: TimedModel, assignments: Sequence[Mapping[str, str]], rounds: int) -> np.ndarray:
    """Share of the original's time that each assignment saves, all measured in turns."""
    pieces = [timed.whole({}), *(timed.whole(assignment) for assignment in assignments)]
    random = np.random.default_rng(1)
    for piece in pieces:
        time_whole(timed, piece)
    seconds: list[list[float]] = [[] for _ in pieces]
    for _ in range(rounds):
        for place in random.permutation(len(pieces)):
            seconds[place].append(time_whole(timed, pieces[place]))
    middle = np.median(seconds, axis=1)
    return 1 - middle[1:] / middle[0]


def measured_mse(judge: Judge, assignments: Sequence[Mapping[str, str]]) -> np.ndarray:
    """E[(L − L of the original)²] / E[L²] of each assignment over samples that calibration never saw."""
    per_pass = judge.config.calibration.samples_per_pass
    comparison = Comparison(judge.variants, judge.splits.evaluation, ("ce",), per_pass)
    original, *others = (part.values["ce"] for part in comparison.measure([{}, *assignments]))
    return np.array([np.square(loss_N - original).mean() for loss_N in others]) / np.square(original).mean()


def draw(series: Sequence[str], mse: np.ndarray, gain: np.ndarray, names: Sequence[str]) -> None:
    """The frontier as bench/time_gain.svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "hpcmpq"
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for name, colour in COLOURS.items():
        own = [place for place, other in enumerate(series) if other == name]
        own.sort(key=lambda place: mse[place])
        style = {"random": "x", "uniform": "s"}.get(name, "o-")
        label = name if name in ("random", "uniform") else f"integer program, {name}"
        axes.plot(mse[own], 100 * gain[own], style, color=colour, label=label, markersize=4, linewidth=1)
        if name == "uniform":
            for place in own:
                axes.annotate(
                    names[place], (mse[place], 100 * gain[place]), (5, 4), textcoords="offset points"
                )
    axes.set_xscale("log")
    axes.set_xlabel("measured loss MSE, share of the loss's mean square")
    axes.set_ylabel("measured time saved, %")
    axes.axhline(0, color="#d5dbe3", linewidth=0.8, zorder=0)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "bench" / "time_gain.svg", metadata={"Date": None})


def main() -> None:
    """Measure, solve, measure again, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    if args.clock == "cpu":
        passes.CLOCK, passes.MAX_PASSES = time.thread_time, 1
    torch.set_num_threads(1)
    run = calibrated(CONFIG, "first_order", "ce")
    judge = Judge(run.config, run.plan)
    space, quantizer = run.plan.space, run.config.quantizer
    model = load_model(run.config.model)
    inputs = judge.splits.calibration[: run.config.calibration.samples_per_pass].inputs
    rows = []
    subjects = {}
    assignments = random_assignments(space, NUM_RANDOM, seed=1)
    for phase, own in phase_inputs(model, inputs).items():
        timed = timed_model(model, space, quantizer, own)
        subjects[phase], measured = measure(f"quickstart, {phase}", timed, args.rounds, assignments)
        rows.append(accuracy_row(subjects[phase], assignments, measured))
    cnn, images = residual_cnn()
    groups = find_groups(cnn, GroupsConfig(), images)
    cnn_space = SearchSpace(groups, (("w8a8", "bf16", "fp32"),) * len(groups))
    cnn_assignments = random_assignments(cnn_space, NUM_RANDOM, seed=1)
    timed = timed_model(cnn, cnn_space, Quantizer(group_size=None), images)
    subject, measured = measure("residual CNN", timed, args.rounds, cnn_assignments)
    rows.append(accuracy_row(subject, cnn_assignments, measured))
    accuracy = table(
        [
            "model",
            "sub-graphs",
            "measured, ms",
            "sum of sub-graphs, error",
            "sum of layers, error",
            "clock noise",
        ],
        rows,
    )
    print(accuracy, flush=True)

    mean_square = run.quadratic.task_loss_mean_square
    assert mean_square is not None
    points = frontier(subjects["prefill"], judge, run.quadratic.linear_P, mean_square, 5.0)
    chosen = [assignment for _, _, assignment in points]
    gain = measured_gain(subjects["prefill"].timed, chosen, 3 * args.rounds // 2)
    mse = measured_mse(judge, chosen)
    series = [name for name, _, _ in points]
    names = [next(iter(set(a.values()))) if name == "uniform" else "" for name, _, a in points]
    draw(series, mse, gain, names)
    limits = list(dict.fromkeys(limit for _, limit, _ in points if limit is not None))
    shown = []
    for limit in limits:
        own = {name: place for place, (name, given, _) in enumerate(points) if given == limit}
        cells = [f"{100 * gain[own[n]]:.1f} % ({mse[own[n]]:.1e})" for n in ("time", "MACs", "memory")]
        shown.append([f"{limit:.1e}", *cells])
    rest = [
        [f"uniform {name}" if name else "random", f"{100 * g:.1f} %", f"{m:.1e}"]
        for kind, name, g, m in zip(series, names, gain, mse, strict=True)
        if kind in ("uniform", "random")
    ]
    machine = " ".join(str(value) for value in describe_machine(torch.device("cpu")).values())
    text = (
        f"## Time: sub-graphs, whole models, and what to optimise\n\n`python -m bench.time`: {CONFIG} "
        f"({', '.join(space.formats[0])}) and a residual CNN (w8a8, bf16, fp32), one thread of {machine}, "
        f"{args.clock} clock, {args.rounds} rounds in turns; "
        f"{NUM_RANDOM} random assignments, median error (largest). A sum of layers "
        "is the original's time and what changing each layer alone changes; clock noise is the median deviation of "
        f"one combination's time.\n\n{accuracy}\n\n"
        f"Time saved end to end, measured, prefill of {list(inputs['input_ids'].shape)} tokens, and in brackets the "
        "measured loss MSE as a share of the loss's mean square on text that was not calibrated on, for three "
        f"integer programs under the same limit on the predicted loss MSE:\n\n"
        f"{table(['limit', 'maximise time', 'maximise MACs saved', 'maximise memory saved'], shown)}\n\n"
        f"{table(['assignment', 'time saved', 'loss MSE'], rest)}\n\n"
        "![Measured time saved against measured loss MSE](time_gain.svg)"
    )
    print(text)
    write_section("time", text)


if __name__ == "__main__":
    main()
