"""Ours, refined: what `hpcmpq solve` and `hpcmpq refine` end with, in a run directory of its own for every budget."""

import dataclasses

from bench.peers.calibration import Calibrated
from hpcmpq.executors.in_process import InProcess
from hpcmpq.plan import plan_to_json
from hpcmpq.refine.stage import refine
from hpcmpq.settings import RefineConfig
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution

REFINED = "ours: refined"

LINK_POINTS = 3
"""The fewest: the link is for predictions, which the judge does not ask for."""

SHARED = (
    "original",
    "data",
    "samples.safetensors",
    "rounded",
    "activations.h5",
    "quadratic.h5",
    "cost.json",
)
"""What the run directories of all budgets have in common."""


def refined(made: Calibrated, limit: float, rounds: int) -> dict[str, str]:
    """The assignment {group name: format name} after refinement, see `refined_run`."""
    return dict(read_solution(refined_run(made, limit, rounds))["assignment"])


def refined_run(made: Calibrated, limit: float, rounds: int) -> RunDir:
    """A run directory of one budget, solved and refined; one that is there already is left as it is.

    Args:
        made: A reduced run.
        limit: Payload bits per weight.
        rounds: Expansions that may be made; with 0 the best of the portfolio is taken.
    """
    run = RunDir(made.kept.path / f"refined-{limit:g}-{rounds}")
    if run.solution_path.exists() and "refine" in read_solution(run):
        return run
    share(made.run, run)
    most = rounds * neighbours_of_all(made) or 1
    settings = RefineConfig(max_evaluations=most, link_points=LINK_POINTS)
    plan = dataclasses.replace(made.plan, config=dataclasses.replace(made.config, refine=settings))
    write_json(run.plan_path, plan_to_json(plan))
    solve(run, {"weight_bits": limit}, settings_of(plan))
    refine(run, InProcess(), lambda done, most: print(f"{limit:g} bits: {done} of {most}", flush=True))
    return run


def share(run: RunDir, other: RunDir) -> None:
    """Link what run directories of one calibration have in common."""
    other.path.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if run.file(name).exists() and not other.file(name).exists():
            other.file(name).symlink_to(run.file(name).resolve())


def neighbours_of_all(made: Calibrated) -> int:
    """Evaluations of one round: two neighbours a group, and the answers of its trust regions."""
    return 2 * len(made.plan.space.groups) + 10
