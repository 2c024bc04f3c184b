"""What `sensitivity: {screen: true}` measures and saves, and whether the solution is that of all options.

    python -m bench.peers.screened                                                    # the shipped small models
    python -m bench.peers.screened --configs smollm2 --samples 4 --rounding nearest

All options are measured once. For every budget the rounds of `hpcmpq.screening` then choose among them, with the first
pass's real costs, and take what was measured of those that they choose; the solver's answers with these and with all
are compared. Cost is in blocks that run, to which the first pass adds what it took. Writes section `screened` or,
of one config, `screened_NAME` of bench/RESULTS.md.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.peers.calibration import ThisProcess, calibrated, cpu_seconds, seconds_of
from bench.results import ROOT, table, write_section
from hpcmpq.config import read_config
from hpcmpq.executors.batches import run_batches
from hpcmpq.plan import Plan, in_rounds
from hpcmpq.quadratic import QuadraticModel, flip_terms
from hpcmpq.screening.choice import first_options, more_options, share_of_blocks
from hpcmpq.screening.first_pass import first_pass
from hpcmpq.solve.formulate import make_problem, uniform_hint
from hpcmpq.solve.outcome import solve_problem
from hpcmpq.solve.screened import wanted_options
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.store.npz_files import read_npz, write_npz

CONFIGS = ("digits", "quickstart", "vit", "mixture")

LIMITS = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
"""Weight bits, beside the config's own budgets."""

SOLVE_S = 10.0

Row = list[object]


@dataclass(frozen=True)
class Answer:
    """A solution: its assignment and its predicted loss by all that was measured."""

    assignment: dict[str, str]
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--samples", type=int, help="calibration samples, instead of the config's")
    parser.add_argument("--rounding", choices=("nearest", "gptq"), help="instead of the config's")
    args = parser.parse_args()
    rows, notes = list[Row](), list[str]()
    for name in args.configs:
        found, note = rows_of(name, args.samples, args.rounding)
        rows += found
        notes.append(note)
    header = [
        "model", "budget", "options", "of", "share of the cost", "rounds", "groups that differ",
        "not measured of those", "loss, against all",
    ]  # fmt: skip
    own = args.configs[0] if len(args.configs) == 1 else ""
    text = (
        f"## What screening saves{f': {own}' if own else ''}\n\n`python -m bench.peers.screened`: options that "
        "`sensitivity: {screen: true}` measures, the blocks that they run of those that all run, rounds after the "
        "first pass, and the solver's answer beside that with all options measured. "
        f"{' '.join(notes)}\n\n{table(header, rows)}"
    )
    print(text)
    write_section(f"screened_{own}" if own else "screened", text)


def rows_of(name: str, samples: int | None, rounding: str | None) -> tuple[list[Row], str]:
    """Every budget of one model, and a sentence on what its calibration took."""
    config = read_config(Path(ROOT / "configs" / f"{name}.yaml"))
    if samples is not None:
        config = replace(
            config, calibration=replace(config.calibration, num_samples=samples, samples_per_unit=1)
        )
    if rounding is not None:
        config = replace(config, quantizer=replace(config.quantizer, rounding=rounding))
    made = calibrated(f"screened-{name}", config)
    costs = made.kept.file("first_pass.npz")
    if not costs.exists():
        with cpu_seconds(made.kept, "first pass"):
            first_P = run_batches(first_pass(made.run, lambda *_: None, (0, 1), None), ThisProcess())
        assert first_P is not None
        write_npz(costs, {"cost": first_P})
    first_P = read_npz(costs)["cost"]
    asked: list[Mapping[str, float]] = [config.budgets]
    if list(config.budgets) == ["weight_bits"]:
        asked += [{"weight_bits": limit} for limit in LIMITS if limit != config.budgets["weight_bits"]]
    rows = [screened_row(name, made.plan, made.quadratic, first_P, budgets) for budgets in asked]
    seconds = seconds_of(made.kept)
    return rows, (
        f"{name}: {config.calibration.num_samples} samples, rounding {config.quantizer.rounding}; measuring all "
        f"options took {seconds['calibrate']:.0f} CPU seconds, the first pass {seconds['first pass']:.0f}."
    )


def screened_row(
    name: str, plan: Plan, model: QuadraticModel, first_P: np.ndarray, budgets: Mapping[str, float]
) -> Row:
    """What the rounds choose for some budgets."""
    settings = replace(plan.config.solver, time_limit_s=SOLVE_S)
    rounds = [first_options(plan, first_P, budgets, settings)]
    while True:
        screened = in_rounds(plan, rounds)
        own = shrunk(part_of(model, sorted(p for options in rounds for p in options)), settings.shrink)
        more = more_options(screened, first_P, own, budgets, settings)
        if not more:
            break
        rounds.append(more)
    answer, choice_G = solved(screened, own, budgets, plan, model)
    wanted = wanted_options(screened, first_P, own, choice_G, budgets, settings)
    assert not wanted, "the same solver wants no more"
    whole, _ = solved(plan, shrunk(model, settings.shrink), budgets, plan, model)
    differ = [group for group, found in answer.assignment.items() if whole.assignment[group] != found]
    index = {
        group.name: names for group, names in zip(screened.space.groups, screened.space.formats, strict=True)
    }
    row: Row = [
        name,
        ", ".join(f"{key} {limit:g}" for key, limit in budgets.items()),
        screened.space.num_options,
        plan.space.num_options,
        f"{share_of_blocks(plan.space, screened.space):.0%}",
        len(rounds),
        len(differ),
        sum(whole.assignment[group] not in index[group] for group in differ),
        f"{100 * (answer.loss / whole.loss - 1):+.2f} %",
    ]
    print(*row, sep=" | ", flush=True)
    return row


def solved(
    plan: Plan, model: QuadraticModel, budgets: Mapping[str, float], whole: Plan, everything: QuadraticModel
) -> tuple[Answer, np.ndarray]:
    """The solver's answer, judged by everything that was measured, shrunk alike for all."""
    settings = replace(plan.config.solver, time_limit_s=SOLVE_S)
    problem = make_problem(plan, model, budgets, settings)
    choice_G = solve_problem(problem, model, settings, uniform_hint(plan.space, problem)).choice_G
    assert choice_G is not None
    assignment = plan.space.assignment(choice_G)
    judge = shrunk(everything, settings.shrink)
    return Answer(assignment, judge.predicted_loss(whole.space.choice(assignment)) - judge.loss0), choice_G


def part_of(model: QuadraticModel, options: list[int]) -> QuadraticModel:
    """The model of some options alone, as measured."""
    both, flips_P, flips_PP = np.ix_(options, options), None, 0.0
    if model.flips_P is not None:  # what they add to cross terms depends on which options there are
        flips_P, groups = model.flips_P[options], np.array(group_numbers(model.option_group))
        flips_PP = flip_terms(flips_P, groups[options]) - flip_terms(model.flips_P, groups)[both]
    return replace(
        model,
        option_group=tuple(model.option_group[p] for p in options),
        option_format=tuple(model.option_format[p] for p in options),
        linear_P=model.linear_P[options],
        quad_PP=model.quad_PP[both] + flips_PP,
        stderr_linear_P=model.stderr_linear_P[options],
        stderr_quad_PP=model.stderr_quad_PP[both],
        batch_linear_BP=model.batch_linear_BP[:, options],
        batch_quad_BPP=model.batch_quad_BPP[:, options][:, :, options] + flips_PP,
        flips_P=flips_P,
    )


def group_numbers(names: tuple[str, ...]) -> list[int]:
    """The place of every option's group among all."""
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]


if __name__ == "__main__":
    main()
