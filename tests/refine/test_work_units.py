"""Refinement in work units: the same bits for any number of workers, interrupted or not, streamed or not."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hpcmpq.calibrate.reduce import reduce
from hpcmpq.calibrate.stage import calibrate
from hpcmpq.errors import UserError
from hpcmpq.executors import open_executor
from hpcmpq.executors.in_process import InProcess
from hpcmpq.refine.inquiries import WholeLosses, plan_of
from hpcmpq.refine.stage import refine
from hpcmpq.solve.settings import settings_of
from hpcmpq.solve.stage import solve
from hpcmpq.solvers import make_solver
from hpcmpq.store.json_files import read_json, write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.executors.launch import MARKS, command_line, run
from tests.executors.tiny_run import plan_run

pytestmark = pytest.mark.slow


def unseen(*_: object) -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Three groups, three units of four samples, and held-out samples of one unit."""
    made = plan_run(tmp_path_factory.mktemp("solved"))
    calibrate(made, InProcess(), unseen)
    reduce(made)
    solve(made, {"weight_bits": 3.0}, settings_of(read_plan(made)))
    return made


@pytest.fixture
def copied(solved: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(solved.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture(scope="module")
def alone(solved: RunDir, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """`solution.json` refined by one process that nobody interrupts."""
    shutil.copytree(solved.path, path := tmp_path_factory.mktemp("alone") / "run")
    refine(RunDir(path), InProcess(), unseen)
    assert not (path / "refine").exists()
    return (path / "solution.json").read_bytes()


def test_a_solution_past_its_budgets_is_refused_before_anything_is_measured(copied: RunDir):
    values = json.loads(copied.solution_path.read_text())
    values |= {"assignment": dict.fromkeys(values["assignment"], "int4"), "digest": "edited"}
    copied.solution_path.write_text(json.dumps(values))
    before = copied.solution_path.read_bytes()
    with pytest.raises(UserError, match=r"weight_bits 4 is above 3; run `hpcmpq solve"):
        refine(copied, InProcess(), unseen)
    assert copied.solution_path.read_bytes() == before
    assert not copied.file("refine").exists()


def test_two_processes_give_the_same_bits(copied: RunDir, alone: bytes):
    before = json.loads(copied.solution_path.read_text())
    with open_executor("local", 2) as pool:
        refine(copied, pool, unseen)
    assert copied.solution_path.read_bytes() == alone
    after = json.loads(alone)
    assert "refine" in after and "refine" not in before
    assert after["refine"]["evaluations"] > 0


class Killed(Exception):
    pass


class Dying:
    """Runs some units and is gone, as a process that is killed."""

    def __init__(self, num_units: int) -> None:
        self.left, self.whole = num_units, InProcess()

    def run(self, make_worker, units, keep=False) -> Iterator:  # type: ignore[no-untyped-def]
        for outcome in self.whole.run(make_worker, units, keep):
            self.left -= 1
            yield outcome
            if not self.left:
                raise Killed


@pytest.mark.parametrize("num_units", [1, 3, 5])
def test_what_was_measured_before_an_interruption_is_not_measured_again(
    num_units: int, copied: RunDir, alone: bytes
):
    with pytest.raises(Killed):
        refine(copied, Dying(num_units), unseen)
    shards = RunDir(copied.path, "refine").shards_path
    measured = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert len(measured) == num_units
    damaged = min(measured)
    damaged.write_bytes(damaged.read_bytes()[:100])
    seen = []

    class Counting(InProcess):
        def run(self, make_worker, units, keep=False) -> Iterator:  # type: ignore[no-untyped-def]
            seen.extend(unit.id for unit in units)
            yield from super().run(make_worker, units, keep)

    refine(copied, Counting(), unseen)
    assert copied.solution_path.read_bytes() == alone
    assert not {path.stem for path in measured if path != damaged} & set(seen)
    assert damaged.stem in seen


@pytest.mark.parametrize(
    ("num_samples", "length", "sizes"),
    [
        (3, 128, [3]),
        (16, 128, [4] * 4),
        (17, 128, [8, 8, 1]),
        (40, 128, [8] * 5),
        (40, 64, [12] * 3 + [4]),
        (9, 2048, [4, 4, 1]),
    ],
)
def test_whole_losses_take_few_units_of_enough_positions(
    num_samples: int, length: int, sizes: list[int], solved: RunDir
):
    """Calibration has units of four samples: passes start where they would in those."""
    plan = read_plan(solved)
    calibration = replace(plan.config.calibration, sequence_length=length)
    plan = replace(plan, config=replace(plan.config, calibration=calibration))
    units = plan_of(WholeLosses(({},), "held_out", num_samples, ""), plan).units
    assert [unit.sample_stop - unit.sample_start for unit in units] == sizes
    assert [unit.sample_start for unit in units] == [sum(sizes[:place]) for place in range(len(sizes))]
    assert len({unit.id for unit in units}) == len(units)


def test_of_processes_that_share_a_run_the_last_finds_it_done(copied: RunDir, alone: bytes):
    for part in (0, 1):
        values = refine(copied, InProcess(), unseen, (part, 2))
        assert copied.solution_path.read_bytes() == alone
        assert values["refine"]["evaluations"] > 0


def test_units_of_another_base_are_other_units(copied: RunDir):
    """Shards of a round carry what they were measured around: those of another solution are no use."""
    with pytest.raises(Killed):
        refine(copied, Dying(4), unseen)
    names = {path.name for path in RunDir(copied.path, "refine").shards_path.iterdir()}
    solution = read_json(copied.solution_path, "solve")
    first = next(iter(solution["assignment"]))
    other = "int2" if solution["assignment"][first] == "int4" else "int4"
    write_artefact(copied.solution_path, solution | {"assignment": solution["assignment"] | {first: other}})
    with pytest.raises(Killed):
        refine(copied, Dying(1), unseen)
    assert len({path.name for path in RunDir(copied.path, "refine").shards_path.iterdir()} - names) == 1


def test_no_solve_is_given_more_time_than_the_config_says(copied: RunDir, monkeypatch: pytest.MonkeyPatch):
    given = []

    @dataclass
    class Timed:
        name: str

        def solve(self, *arguments, time_limit_s: float, **others):  # type: ignore[no-untyped-def]
            given.append(time_limit_s)
            return make_solver(self.name).solve(*arguments, time_limit_s=time_limit_s, **others)

    for module in ("stage", "portfolio"):
        monkeypatch.setattr(f"hpcmpq.refine.{module}.make_solver", Timed)
    solution = read_json(copied.solution_path, "solve")
    solution["solver"]["time_limit_s"] = 0.25
    write_artefact(copied.solution_path, solution)
    refine(copied, InProcess(), unseen)
    assert len(given) > 10 and set(given) == {0.25}


@pytest.mark.parametrize("name", ["diagonal", "greedy", "linear"])
def test_whatever_solver_made_the_start_is_refined(name: str, copied: RunDir):
    solve(copied, {"weight_bits": 3.0}, settings_of(read_plan(copied), name=name, drop_cross_terms=True))
    assert refine(copied, InProcess(), unseen)["refine"]["evaluations"] > 0


@pytest.mark.parametrize("executor", [pytest.param("mpi", marks=MARKS["mpi"])])
def test_launchers_give_the_same_bits(executor: str, copied: RunDir, alone: bytes):
    ended = run(command_line(executor, "hpcmpq", "refine", copied.path, "--executor", executor))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert copied.solution_path.read_bytes() == alone
