"""A frontier that is interrupted keeps what it solved, and the same command goes on to the same result."""

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmpq.errors import Infeasible, Interrupted
from hpcmpq.problem import Problem, Solution
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.frontier import frontier
from hpcmpq.solve.outcome import find_solution
from hpcmpq.store.json_files import read_json
from hpcmpq.store.quadratic_file import read_quadratic, write_quadratic
from hpcmpq.store.run_dir import RunDir
from tests.executors.background import Background, wait_until
from tests.synthetic_run import synthetic_plan, write_run

LIMITS = (1.0, 2.25, 3.0, 4.0, 5.0)
"""Bits per weight; the first is below the smallest format, so that it cannot be met."""


@dataclass
class Solver:
    """The solver `greedy`, which a signal interrupts at a limit, and the limits that it has solved for."""

    stop_at: float = np.inf
    limits: list[float] = field(default_factory=list)

    def __call__(self, problem: Problem, *arguments: Any) -> Solution:
        limit = problem.budgets[0].limit
        if limit == self.stop_at:
            raise Interrupted("SIGTERM")
        self.limits.append(limit)
        return find_solution(problem, *arguments)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_run(tmp_path / "run", solved=False)


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> Solver:
    solver = Solver()
    monkeypatch.setattr("hpcmpq.solve.frontier.find_solution", solver)
    return solver


def draw(run: RunDir, limits: tuple[float, ...] = LIMITS, **settings: Any) -> dict[str, Any]:
    """The frontier's values but wall times."""
    chosen = SolverConfig(name="greedy", drop_cross_terms=True, **settings)
    values = frontier(run, "weight_bits", np.array(limits), {}, chosen, lambda done, total: None)
    return {**values, "points": [{**point, "seconds": 0.0} for point in values["points"]]}


def interrupted_at_four_bits(run: RunDir, solver: Solver) -> list[Path]:
    """The files that are left."""
    solver.stop_at = 4.0
    with pytest.raises(Interrupted):
        draw(run)
    assert not run.frontier_path.exists()
    solver.stop_at = np.inf
    solver.limits.clear()
    return points_on_disk(run)


def points_on_disk(run: RunDir) -> list[Path]:
    return sorted(run.file("frontier").glob("*/*.npz"))


def test_solved_points_are_not_solved_again_and_the_result_is_the_same(run, solver, tmp_path):
    whole = draw(write_run(tmp_path / "uninterrupted", solved=False))
    assert [point["limit"] for point in whole["points"]] == list(LIMITS[1:])
    solver.limits.clear()
    assert len(interrupted_at_four_bits(run, solver)) == 3
    assert draw(run) == whole
    assert solver.limits == [4.0, 5.0]
    assert read_json(run.frontier_path, "")["points"][0].keys() == whole["points"][0].keys()
    assert not run.file("frontier").exists()


@pytest.mark.parametrize("change", ["limits", "settings", "measurement"])
def test_points_of_another_frontier_are_no_use(run, solver, change):
    interrupted_at_four_bits(run, solver)
    limits, settings = LIMITS, {}
    if change == "limits":
        limits = (*LIMITS[:-1], 6.0)
    elif change == "settings":
        settings = {"time_limit_s": 7.0}
    else:
        model = read_quadratic(run.quadratic_path)
        model.linear_P[0] *= 1.01
        write_quadratic(run.quadratic_path, model, model.linear_P, synthetic_plan().fingerprint)
    draw(run, limits, **settings)
    assert solver.limits == list(limits)


def test_a_damaged_point_is_solved_again(run, solver, caplog):
    damaged = interrupted_at_four_bits(run, solver)[1]
    content = bytearray(damaged.read_bytes())
    with np.load(damaged) as arrays:
        content[content.index(arrays["choice"].tobytes())] ^= 1
    damaged.write_bytes(content)
    values = draw(run)
    assert solver.limits == [2.25, 4.0, 5.0]
    assert values == draw(run)
    assert f"{damaged} is damaged" in caplog.text


def test_a_frontier_without_any_point_leaves_nothing(run):
    with pytest.raises(Infeasible):
        draw(run, (1.0, 1.5))
    assert not run.file("frontier").exists()


@pytest.mark.slow
def test_a_signal_keeps_the_points_and_the_same_command_goes_on(run):
    command = [
        sys.executable,
        "-m",
        "hpcmpq",
        "frontier",
        str(run.path),
        "--from=2.5",
        "--to=4",
        "--step=0.5",
    ]
    with Background(command) as started:
        wait_until(lambda: bool(points_on_disk(run)), "a point is solved")
        os.kill(started.process.pid, signal.SIGUSR2)
        status, output = started.end()
    kept = len(points_on_disk(run))
    assert status == 75, output
    assert 1 <= kept < 4
    seconds = [float(np.load(path)["seconds"]) for path in points_on_disk(run)]
    with Background(command) as started:
        status, output = started.end()
    assert status == 0, output
    points = read_json(run.frontier_path, "")["points"]
    assert len(points) == 4
    assert [point["seconds"] for point in points[:kept]] == seconds
