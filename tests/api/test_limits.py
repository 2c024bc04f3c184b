"""The range of a frontier that was not given, and the coarse one that `hpcmpq run` draws."""

import json
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.api.limits import COARSE_STEPS, coarse_frontier, frontier
from hpcmpq.errors import UserError
from hpcmpq.solve.formulate import cost_values, uniform_choices
from hpcmpq.solve.frontier import uniform_range
from hpcmpq.store.json_files import write_artefact
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from tests.report.other_runs import write_other_run
from tests.synthetic_run import write_run

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_run(tmp_path / "run", solved=False)


@pytest.mark.parametrize("cost", ["weight_bits", "size_bytes", "bops"])
def test_range_is_that_of_the_uniform_formats(run: RunDir, cost: str):
    plan = read_plan(run)
    costs = [cost_values(plan, choice_G)[cost] for choice_G in uniform_choices(plan.space).values()]
    assert uniform_range(plan, cost) == pytest.approx((min(costs), max(costs)))


def test_run_draws_a_coarse_frontier_over_the_config_s_budget(run: RunDir):
    coarse_frontier(run)
    values = json.loads(run.frontier_path.read_text())
    assert values["cost"] == "weight_bits"
    assert [point["limit"] for point in values["points"]] == pytest.approx(
        np.linspace(2, 8, COARSE_STEPS + 1)
    )


def test_a_frontier_that_is_there_is_kept(run: RunDir):
    frontier(run, "weight_bits", 3.0, 4.0, 1.0, time_limit_s=0.5)
    before = run.frontier_path.read_bytes()
    coarse_frontier(run)
    assert run.frontier_path.read_bytes() == before


def test_a_frontier_under_several_budgets_is_kept_too(run: RunDir):
    plan = json.loads(run.plan_path.read_text())
    plan["config"]["budgets"]["average_bits"] = 7.0
    run.plan_path.write_text(json.dumps(plan))
    coarse_frontier(run)
    before = run.frontier_path.stat().st_ino
    coarse_frontier(run)
    assert run.frontier_path.stat().st_ino == before


def test_a_frontier_of_other_solver_settings_is_solved_again(run: RunDir):
    frontier(run, "weight_bits", 3.0, 4.0, 1.0, time_limit_s=0.5)
    plan = json.loads(run.plan_path.read_text())
    plan["config"]["solver"]["drop_cross_terms"] = True
    run.plan_path.write_text(json.dumps(plan))
    coarse_frontier(run)
    values = json.loads(run.frontier_path.read_text())
    assert values["solver"]["drop_cross_terms"] is True
    assert len(values["points"]) > 2


def test_a_frontier_by_another_solver_says_so_and_is_kept(run: RunDir):
    frontier(run, "weight_bits", 3.0, 4.0, 1.0, solver="linear", time_limit_s=0.5)
    before = run.frontier_path.read_bytes()
    assert json.loads(before)["solver"]["name"] == "linear" != read_plan(run).config.solver.name
    coarse_frontier(run)
    assert run.frontier_path.read_bytes() == before


def test_a_frontier_of_fewer_measured_options_is_solved_again(run: RunDir):
    coarse_frontier(run)
    values = json.loads(run.frontier_path.read_text())
    write_artefact(
        run.frontier_path, values | {"num_options": values["num_options"] - 1}
    )  # before a screening round
    coarse_frontier(run)
    assert json.loads(run.frontier_path.read_text())["num_options"] == values["num_options"]


def test_without_two_uniform_sizes_it_is_skipped_and_a_range_is_asked_for(tmp_path: Path):
    run = write_other_run(tmp_path / "run", {"first": None, "second": None}, ("int4",))
    assert coarse_frontier(run) == "no two uniform formats differ in weight_bits"
    assert not run.frontier_path.exists()
    with pytest.raises(UserError, match="give --from and --to"):
        frontier(run)
