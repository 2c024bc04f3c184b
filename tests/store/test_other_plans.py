"""What was measured or solved under another plan is not taken for this one's, whatever its groups and formats."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.api.run import Run
from hpcmpq.batch.status import read_status
from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import plan_to_json
from hpcmpq.report.compare import compare
from hpcmpq.report.findings import read_findings
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.frontier import frontier
from hpcmpq.solve.largest_gain import maximize
from hpcmpq.solve.stage import solve
from hpcmpq.store.json_files import read_json, write_artefact, write_json
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.tracking.record import record_of
from tests.synthetic_run import write_run

QUICK = SolverConfig(time_limit_s=1.0)


@pytest.fixture
def replanned(tmp_path: Path) -> RunDir:
    """A run whose plan was removed and made again of other samples: the same groups and formats."""
    run = write_run(tmp_path / "run")
    plan = read_plan(run)
    solve(run, {"weight_bits": 3.0}, QUICK)
    assert read_solution(run)["fingerprint"] == plan.fingerprint
    write_artefact(run.plan_path, plan_to_json(dataclasses.replace(plan, fingerprint="another")))
    return run


@pytest.mark.parametrize(
    "stage",
    [
        lambda run: solve(run, {"weight_bits": 3.0}, QUICK),
        lambda run: maximize(run, "memory_gain", 0.1, {}, QUICK),
        lambda run: frontier(run, "weight_bits", np.array([3.0]), {}, QUICK, lambda *_: None),
        read_findings,
        lambda run: Run(run.path).quadratic,
    ],
    ids=["solve", "maximize", "frontier", "report", "Run.quadratic"],
)
def test_another_plans_quadratic_model_is_refused(replanned, stage):
    with pytest.raises(PlanMismatch, match=r"quadratic\.h5 belongs to another plan"):
        stage(replanned)


def test_another_plans_quadratic_model_is_not_done(replanned):
    def reduced() -> bool:
        return {stage.name: stage.done for stage in read_status(replanned).stages}["reduce"]

    assert not reduced()
    measured_for = read_json(replanned.solution_path, "hpcmpq solve")["fingerprint"]
    write_artefact(
        replanned.plan_path,
        plan_to_json(dataclasses.replace(read_plan(replanned), fingerprint=measured_for)),
    )
    assert reduced()


def test_another_plans_solution_is_refused_and_not_done(replanned):
    with pytest.raises(PlanMismatch, match=r"solution\.json was solved for another plan .*run `hpcmpq solve"):
        read_solution(replanned)
    assert not {stage.name: stage.done for stage in read_status(replanned).stages}["solve"]


def test_another_plans_evaluation_and_frontier_are_none_of_this_one(tmp_path: Path):
    """Though the assignment is the same; those of earlier versions, which do not say, are taken."""
    run = write_run(tmp_path / "run", frontier=True, evaluated=True)
    assert read_json(run.evaluation_path, "")["assignment"] == read_solution(run)["assignment"]
    record, notes = record_of(run), compare(run, run)["notes"]
    assert record.frontier and "measured.kl.quantized" in record.metrics and not notes
    for path in (run.evaluation_path, run.frontier_path):
        write_json(path, {**read_json(path, ""), "fingerprint": "another"})
    record = record_of(run)
    assert not record.frontier and not [name for name in record.metrics if name.startswith("measured.")]
    assert compare(run, run)["evaluation"] == {}
    findings = read_findings(run)
    assert findings.evaluation is None and findings.frontier is None
    assert findings.missing["evaluation"].startswith(
        "evaluation.json measured the model of another plan than"
    )


def test_a_solution_without_a_fingerprint_is_of_an_earlier_version(replanned):
    values = read_json(replanned.solution_path, "hpcmpq solve")
    del values["fingerprint"]
    write_artefact(replanned.solution_path, values)
    assert read_solution(replanned)["assignment"] == values["assignment"]
