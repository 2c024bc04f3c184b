"""What was measured or solved under another plan is not taken for this one's, whatever its groups and formats."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hpcmpq.api.run import Run
from hpcmpq.batch.status import read_status
from hpcmpq.errors import PlanMismatch
from hpcmpq.plan import UnitOutcome, plan_to_json
from hpcmpq.report import write_report
from hpcmpq.report.compare import compare
from hpcmpq.report.findings import read_findings
from hpcmpq.report.provenance import environment_facts, files_table
from hpcmpq.report.stages import stage_table
from hpcmpq.settings import SolverConfig
from hpcmpq.solve.frontier import frontier
from hpcmpq.solve.largest_gain import LossLimit, maximize
from hpcmpq.solve.stage import solve
from hpcmpq.store.attempts import recording
from hpcmpq.store.json_files import read_json, write_artefact, write_json
from hpcmpq.store.of_solution import read_proof
from hpcmpq.store.plan_file import read_plan
from hpcmpq.store.quadratic_file import write_quadratic
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from hpcmpq.store.sums import write_sums
from hpcmpq.tracking.record import record_of
from tests.synthetic_run import synthetic_model, write_run

QUICK = SolverConfig(time_limit_s=1.0)


def is_done(run: RunDir) -> dict[str, bool]:
    """{stage: whether `status` says that it is done}."""
    return {stage.name: stage.done for stage in read_status(run).stages}


def export(directory: Path, assignment: Mapping[str, str], **said: object) -> None:
    """What every export has beside its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "assignment.json", dict(assignment))
    write_json(directory / "verification.json", {"verified": True, **said})
    (directory / "model.safetensors").write_bytes(bytes(1000))
    write_sums(directory)


@pytest.fixture
def replanned(tmp_path: Path) -> RunDir:
    """A run whose plan was removed and made again of other samples: the same groups and formats."""
    run = write_run(tmp_path / "run")
    plan = read_plan(run)
    solve(run, {"weight_bits": 3.0}, QUICK)
    assert read_solution(run)["fingerprint"] == plan.fingerprint
    write_artefact(run.plan_path, plan_to_json(dataclasses.replace(plan, fingerprint="another")))
    return run


USERS_OF_THE_QUADRATIC = pytest.mark.parametrize(
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


@USERS_OF_THE_QUADRATIC
def test_another_plans_quadratic_model_is_refused(replanned, stage):
    with pytest.raises(PlanMismatch, match=r"quadratic\.h5 belongs to another plan"):
        stage(replanned)


@USERS_OF_THE_QUADRATIC
def test_a_quadratic_model_of_other_options_is_refused(tmp_path: Path, stage):
    """Of the same plan: what a screened run measures may have been chosen anew since."""
    run = write_run(tmp_path / "run")
    model = synthetic_model()
    swapped = (*model.option_format[1::-1], *model.option_format[2:])
    model = dataclasses.replace(model, option_format=swapped)
    assert is_done(run)["reduce"]
    write_quadratic(run.quadratic_path, model, model.linear_P, read_plan(run).fingerprint)
    assert not is_done(run)["reduce"]
    with pytest.raises(PlanMismatch, match=r"other options than the 196 .* run `hpcmpq reduce"):
        stage(run)


def test_another_plans_quadratic_model_is_not_done(replanned):
    def reduced() -> bool:
        return is_done(replanned)["reduce"]

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
    assert not is_done(replanned)["solve"]


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
    assert not {run.evaluation_path, run.frontier_path} & {*record.files}
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


def test_what_was_made_of_another_solution_is_not_done(tmp_path: Path):
    """Whatever lies there: `status` looks whether it is of the solution, as far as it says."""
    run = write_run(tmp_path / "run", evaluated=True)
    solution, evaluation = read_solution(run), read_json(run.evaluation_path, "")
    assignment, own = solution["assignment"], {"fingerprint": solution["fingerprint"], "codes": None}
    other = dict.fromkeys(assignment, "int8")
    export(run.checkpoint_path, assignment, **own)
    assert is_done(run)["export"] and is_done(run)["evaluate"]
    for change in ({"fingerprint": "another"}, {"assignment": other}, {"codes": "c" * 16}):
        write_artefact(run.evaluation_path, {**evaluation, **change})
        assert not is_done(run)["evaluate"]
        export(run.checkpoint_path, **{"assignment": assignment, **own, **change})
        assert not is_done(run)["export"]
    export(run.checkpoint_path, assignment)
    assert is_done(run)["export"], "an earlier version did not say of which plan it was"
    (run.checkpoint_path / "verification.json").write_text("{}")
    assert not is_done(run)["export"], "not as its checksums say"


def test_a_report_of_another_solution_is_not_done(tmp_path: Path):
    run = write_run(tmp_path / "run")
    solution = read_json(run.solution_path, "")
    assert not is_done(run)["report"]
    write_report(run)
    assert is_done(run)["report"]
    write_artefact(run.solution_path, {**solution, "detail": "solved again, to the same end"})
    assert is_done(run)["report"]
    group = next(iter(solution["assignment"]))
    write_artefact(run.solution_path, {**solution, "assignment": {**solution["assignment"], group: "int8"}})
    assert not is_done(run)["report"]
    run.report_path.write_text("<!doctype html><title>Of an earlier version</title>")
    assert is_done(run)["report"]


def test_damaged_artefacts_are_not_done_and_named(tmp_path: Path):
    """Those that are read; `status` says of the rest what it says without them."""
    whole = write_run(tmp_path / "whole", evaluated=True)
    for path in (whole.solution_path, whole.evaluation_path):
        write_artefact(path, read_json(path, ""))
    expected = is_done(whole)
    for name, stage, loses in (
        ("quadratic.h5", "reduce", {"reduce"}),
        ("evaluation.json", "evaluate", {"evaluate"}),
        ("solution.json", "solve", {"solve", "evaluate"}),
    ):
        for damage in (lambda content: content[: len(content) // 2], a_bit, lambda content: b""):
            run = RunDir(Path(shutil.copytree(whole.path, tmp_path / "run")))
            path = run.file(name)
            path.write_bytes(damage(path.read_bytes()))
            state = read_status(run)
            assert {each.name for each in state.stages if expected[each.name] and not each.done} == loses
            [sentence] = state.damaged
            assert f"{name} is damaged" in sentence and f"run `hpcmpq {stage} " in sentence
            shutil.rmtree(run.path)


def a_bit(content: bytes) -> bytes:
    """The content with a bit in the middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def test_an_export_of_another_solution_is_none_of_the_reports(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assignment = read_solution(run)["assignment"]
    export(run.path / "exports" / "gguf", assignment)
    export(run.path / "exports" / "mlx", dict.fromkeys(assignment, "int8"))
    table = files_table(read_findings(run))
    (gguf, of_gguf, _, share), (mlx, of_mlx, _, no_share) = table.rows
    assert (gguf, mlx) == ("exports/gguf", "exports/mlx")
    assert "another solution" not in of_gguf and share is not None
    assert of_mlx.endswith("of another solution than this one") and no_share is None


def test_another_plans_costs_and_attempts_are_none_of_the_reports(tmp_path: Path):
    run = write_run(tmp_path / "run")
    plan = read_plan(run)
    cost = {"forwards": 7.0, "flops": 1e9, "peak_bytes": 1000, "seconds": None}
    for fingerprint, planned in ((plan.fingerprint, True), ("another", False)):
        write_artefact(run.file("cost.json"), {**cost, "fingerprint": fingerprint})
        assert ("planned as 7 passes" in str(stage_table(read_findings(run)).rows)) is planned
    with recording(run, "there") as record:
        record(UnitOutcome(dataclasses.replace(plan.units[0], id="another"), 0.5, "OSError: gone"))
    assert "on 1 host" not in str(stage_table(read_findings(run)).rows)
    assert ("calibrated on", "there") not in environment_facts(read_findings(run))
    with recording(run, "here") as record:
        record(UnitOutcome(plan.units[0], 0.5))
    assert "from 1 process on 1 host, 0.5 s" in str(stage_table(read_findings(run)).rows)
    assert ("calibrated on", "here") in environment_facts(read_findings(run))


def test_the_proof_is_of_the_solution(tmp_path: Path):
    run = write_run(tmp_path / "run")
    solution = solve(run, {"weight_bits": 3.0}, QUICK)
    path, proof = run.file("proof.json"), read_proof(run, solution)
    assert proof["budgets"] == {"weight_bits": 3.0} and proof["bound"] == solution["bound"]
    for change in ({"fingerprint": "another"}, {"budgets": {"weight_bits": 2.5}}, {"bound": 0.0}):
        write_artefact(path, {**proof, **change})
        with pytest.raises(PlanMismatch, match="of another solution; run `hpcmpq solve .* --verbose`"):
            read_proof(run, solution)
    write_artefact(path, {name: proof[name] for name in ("lines", "part_s", "detail")})
    assert read_proof(run, solution), "an earlier version did not say of which solution it was"
    maximize(run, "memory_gain", LossLimit(0.1, "loss_increase", 0.1), {}, QUICK)
    assert not path.exists()
