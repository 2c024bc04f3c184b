"""Points of a frontier that is being solved, RUN/frontier/<content>/<place>.npz, until all are there.

The name existing is the only "done" mark; a file is written beside its name, fsynced and renamed. `<content>`
hashes all that a point depends on, so that what an interrupted frontier of other limits, settings or
measurements left is no use.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmpq.problem import Problem, Solution, Termination
from hpcmpq.quadratic import QuadraticModel
from hpcmpq.settings import SolverConfig
from hpcmpq.store.npz_files import read_finished, write_finished
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.whole_files import make_directory, remove_abandoned


@dataclass(frozen=True)
class SolvedPoints:
    """The files of one frontier."""

    directory: Path

    def write(self, place: int, solution: Solution) -> None:
        """Store the solution of the problem at a place, its costs aside, which follow from its choice."""
        values: dict[str, object] = {
            "choice": solution.choice_G,
            "objective": solution.objective,
            "bound": solution.bound,
            "seconds": solution.seconds,
            "termination": solution.termination.value,
            "detail": solution.detail,
        }
        arrays = {name: np.array(value) for name, value in values.items() if value is not None}
        write_finished(self._path(place), arrays)

    def read(self, place: int, problem: Problem) -> Solution | None:
        """The stored solution of a problem, or None if it is not solved yet; a damaged file is removed."""
        values = read_finished(self._path(place), "solving it anew")
        if values is None:
            return None
        choice_G = values.get("choice")
        return Solution(
            termination=Termination(str(values["termination"])),
            choice_G=choice_G,
            objective=float(values["objective"]) if "objective" in values else None,
            bound=float(values["bound"]) if "bound" in values else None,
            costs={} if choice_G is None else problem.costs(choice_G),
            seconds=float(values["seconds"]),
            detail=str(values["detail"]),
        )

    def _path(self, place: int) -> Path:
        return self.directory / f"{place:04d}.npz"


def open_points(
    run: RunDir, problems: Sequence[Problem], model: QuadraticModel, settings: SolverConfig
) -> SolvedPoints:
    """The points of the frontier over these problems, perhaps of an earlier process."""
    directory = run.file("frontier") / content_of(problems, model, settings)[:16]
    make_directory(directory)
    remove_abandoned(directory)
    return SolvedPoints(directory)


def remove_points(run: RunDir) -> None:
    """Remove the points of a frontier that is finished, and of those before it."""
    shutil.rmtree(run.file("frontier"), ignore_errors=True)


def content_of(problems: Sequence[Problem], model: QuadraticModel, settings: SolverConfig) -> str:
    """SHA-256 of problems that differ in the limits of their budgets alone, and of how they are solved."""
    problem = problems[0]
    terms = [[list(term.groups) for term in budget.cost.terms] for budget in problem.budgets]
    limits = [[budget.limit for budget in each.budgets] for each in problems]
    names = [budget.cost.name for budget in problem.budgets]
    plain = [dataclasses.asdict(settings), names, terms, limits, problem.ties, problem.constant]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    arrays = [problem.linear_P, problem.quad_PP, problem.group_P, model.batch_linear_BP, model.batch_quad_BPP]
    arrays += [a for a in (problem.allowed_P, problem.tie_class_P) if a is not None]
    for budget in problem.budgets:
        arrays += [np.array(budget.cost.constant), budget.cost.linear_P]
        arrays += [term.table for term in budget.cost.terms]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
