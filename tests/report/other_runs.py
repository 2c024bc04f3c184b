"""Run directories of other kinds of models and settings than `tests.synthetic_run`, for the report alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcmpq.calibrate.reduce import mirror
from hpcmpq.config import parse_config
from hpcmpq.evaluate.statistics import summarise
from hpcmpq.formats import FORMATS
from hpcmpq.plan import Plan, content_hash, make_units, plan_to_json
from hpcmpq.problem import Solution, Termination
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.outcome import describe
from hpcmpq.solve.shrinkage import shrunk
from hpcmpq.solve.stage import make_problem
from hpcmpq.space import Group, Member, SearchSpace
from hpcmpq.store.json_files import write_json
from hpcmpq.store.quadratic_file import write_quadratic
from hpcmpq.store.run_dir import RunDir

NUM_SAMPLES = 64


def write_other_run(
    path: Path,
    names: Mapping[str, int | None],
    formats: tuple[str, ...],
    *,
    objective: str = "kl",
    budgets: Mapping[str, float] | None = None,
    cross_terms: bool = True,
    num_batches: int = 4,
    measured: Mapping[str, float] | None = None,
    num_labels: int = 1,
    noise: float = 0.6,
) -> RunDir:
    """A solved run, evaluated where `measured` says each model's mean increase.

    Args:
        path: Of the run directory.
        names: {group: its block}.
        formats: Of every group.
        objective: ``kl``, ``ce`` or ``mse``.
        budgets: Of the solution; none if empty.
        cross_terms: Whether groups interact.
        num_batches: Calibration batches.
        measured: {model: increase}, None for a run that was not evaluated.
        num_labels: Labels of a sample: 1 makes it classification.
        noise: Standard error of every interaction, relative to it.
    """
    run, plan = RunDir(path), _plan(names, formats, objective)
    model = _model(plan.space, objective, cross_terms, num_batches, noise)
    write_json(run.plan_path, plan_to_json(plan))
    write_quadratic(run.quadratic_path, model, model.linear_P, plan.fingerprint)
    solution = _solution(plan, model, dict(budgets or {}))
    write_json(run.solution_path, solution)
    if measured is not None:
        write_json(run.evaluation_path, _evaluation(plan, solution, objective, measured, num_labels))
    return run


def transformer(num_blocks: int, kinds: tuple[str, ...], head: bool = False) -> dict[str, int | None]:
    """Names and blocks of a transformer's groups."""
    names: dict[str, int | None] = {
        f"model.layers.{b}.{kind}": b for b in range(num_blocks) for kind in kinds
    }
    return {**names, "lm_head": None} if head else names


def _plan(names: Mapping[str, int | None], formats: tuple[str, ...], objective: str) -> Plan:
    config = parse_config(
        {
            "model": {"path": "models/other"},
            "calibration": {"data": "text.txt", "num_samples": NUM_SAMPLES},
            "formats": list(formats),
            "objective": objective,
            "budgets": {"weight_bits": 4.0},
        }
    )
    groups = tuple(
        Group(name, (Member(f"{name}.weight", 64, 64, macs=64 * 64),), block) for name, block in names.items()
    )
    fingerprint = content_hash([list(names), list(formats), objective])
    units = make_units(
        fingerprint, len(groups), NUM_SAMPLES, groups_per_unit=len(groups), samples_per_unit=16
    )
    return Plan(
        config=config,
        space=SearchSpace(groups, (formats,) * len(groups)),
        units=units,
        facts={"objective": objective, "model.weights": "f" * 64, "calibration.samples": "e" * 64},
        fingerprint=fingerprint,
        import_paths=(),
        fixed_bytes=10_000,
        environment={"python": "3.11.7", "hpcmpq": "0.1.0"},
    )


def _model(
    space: SearchSpace, objective: str, cross_terms: bool, num_batches: int, noise: float
) -> QuadraticModel:
    generator = np.random.default_rng(1)
    bits_P = np.array([FORMATS[option.format].num_bits for option in space.options])
    linear_P = 0.02 * generator.lognormal(0.0, 0.7, len(space.groups))[space.group_P] * 4.0 ** (2.0 - bits_P)
    phi_RP = generator.normal(size=(24, space.num_options)) * np.sqrt(linear_P / 12)
    quad_PP = mirror(0.2 * cross_terms * phi_RP.T @ phi_RP, space.group_P)
    scale_B = 1 + 0.1 * generator.normal(size=num_batches)
    return QuadraticModel(
        option_group=tuple(space.groups[option.group].name for option in space.options),
        option_format=tuple(option.format for option in space.options),
        linear_P=linear_P,
        quad_PP=quad_PP,
        stderr_linear_P=0.05 * linear_P,
        stderr_quad_PP=noise * np.abs(quad_PP),
        loss0=1.2 if objective == "ce" else 0.0,
        objective=objective,
        method="secant" if cross_terms else "fisher",
        num_samples=NUM_SAMPLES,
        batch_linear_BP=scale_B[:, None] * linear_P,
        batch_quad_BPP=scale_B[:, None, None] * quad_PP,
    )


def _solution(plan: Plan, model: QuadraticModel, budgets: dict[str, float]) -> dict[str, Any]:
    """Formats in turn, from a third of the way up: not the best choice, but a mixed one."""
    space, settings = plan.space, SolverConfig()
    count = len(space.formats[0])
    choice_G = np.arange(len(space.groups)) * count + (np.arange(len(space.groups)) + count // 3) % count
    solved = Solution(Termination.FEASIBLE, choice_G, 0.0, None, {}, 0.5, "")
    model = shrunk(model, settings.shrink)
    problem = make_problem(plan, model, budgets, settings)
    objective = problem.objective(choice_G)
    solved = replace(solved, objective=objective, bound=model.loss0 + 0.9 * (objective - model.loss0))
    return describe(plan, model, problem, solved, budgets, settings)


def _evaluation(
    plan: Plan, solution: dict[str, Any], objective: str, measured: Mapping[str, float], num_labels: int
) -> dict[str, Any]:
    generator = np.random.default_rng(2)
    hard_N, spread_N = generator.normal(1.2, 0.2, NUM_SAMPLES), generator.uniform(0.5, 1.5, NUM_SAMPLES)
    labels_N = np.full(NUM_SAMPLES, num_labels)
    data = {
        name: {
            objective: rise * spread_N,
            "ce": hard_N + rise * spread_N,
            "correct": np.minimum((generator.random(NUM_SAMPLES) > 0.1 + rise).astype(int), labels_N),
            "labels": labels_N,
        }
        for name, rise in measured.items()
    }
    name = next(iter(solution["uniform"]))
    return {
        "format_version": 1,
        **summarise({"data": data}),
        "uniform_format": name,
        "uniform_costs": solution["uniform"][name]["costs"],
        "num_samples": NUM_SAMPLES,
        "objective": objective,
        "engine": "torch",
        "world_size": 2,
        "seconds": 1.5,
        "peak_bytes": [3_000_000, 4_000_000],
        "assignment": solution["assignment"],
        "fingerprint": plan.fingerprint,
    }
