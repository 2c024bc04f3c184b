"""The checks at the top of the report: what passes, what asks for care, what fails and what is open."""

from pathlib import Path
from typing import Any

import pytest

from hpcmpq.report.checks import Check, all_checks
from hpcmpq.report.findings import read_findings
from hpcmpq.report.words import solver_facts, summary_numbers
from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.run_dir import RunDir
from hpcmpq.wording import proven_gap
from tests.report.other_runs import write_other_run

NAMES = {"first": None, "second": None, "third": None, "head": None}
FORMATS = ("int2", "int3", "int4", "int8")
MEASURED = {"original": 0.0, "quantized": 0.02, "uniform": 0.05}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return write_other_run(tmp_path / "run", NAMES, FORMATS, budgets={"weight_bits": 5.0}, measured=MEASURED)


def change(path: Path, **values: Any) -> None:
    write_json(path, {**read_json(path, ""), **values})


def checks(run: RunDir) -> dict[str, Check]:
    return {check.title: check for check in all_checks(read_findings(run))}


def differ(run: RunDir, metric: str, low: float, high: float) -> None:
    """Let the paired difference of a metric to the uniform model have this interval."""
    paired = read_json(run.evaluation_path, "")["paired"]
    paired[metric]["quantized - uniform"] |= {"difference": (low + high) / 2, "interval": [low, high]}
    change(run.evaluation_path, paired=paired)


def test_kept_and_broken_budgets(run: RunDir):
    found = checks(run)["Budgets"]
    assert (found.state, found.sentence) == ("passes", "bits per weight 4.25 of 5.")
    change(run.solution_path, budgets={"weight_bits": 5.0, "size_bytes": 100.0})
    found = checks(run)["Budgets"]
    assert found.state == "fails" and "of 100 B" in found.sentence


@pytest.mark.parametrize(
    ("low", "high", "state", "words"),
    [
        (-0.03, -0.01, "passes", "is better than with uniform int2"),
        (-0.03, 0.01, "take care", "cannot be told apart from that of uniform int2"),
        (0.01, 0.03, "fails", "is worse than with uniform int2"),
    ],
)
def test_difference_to_uniform_counts_when_its_interval_leaves_out_zero(run: RunDir, low, high, state, words):
    differ(run, "kl", low, high)
    found = checks(run)["Better than uniform"]
    assert found.state == state
    assert words in found.sentence and "over 64 samples" in found.sentence


def test_assignment_that_is_uniform_is_said_to_be(tmp_path: Path):
    run = write_other_run(tmp_path / "run", NAMES, ("int4",), budgets={"weight_bits": 5.0}, measured=MEASURED)
    found = checks(run)["Better than uniform"]
    assert found.state == "take care" and "The assignment is uniform int4" in found.sentence


def test_worse_metrics_are_named_and_higher_accuracy_is_better(run: RunDir):
    differ(run, "ce", -0.02, -0.01)
    differ(run, "accuracy", 0.01, 0.02)
    assert checks(run)["Other metrics"].state == "passes"
    differ(run, "accuracy", -0.02, -0.01)
    found = checks(run)["Other metrics"]
    assert found.state == "take care"
    assert "Worse than uniform int2 in accuracy by 0.01500" in found.sentence
    assert "cross-entropy" not in found.sentence
    differ(run, "ce", 0.01, 0.02)
    assert "cross-entropy by 0.01500" in checks(run)["Other metrics"].sentence


def test_worse_tasks_are_named(run: RunDir):
    worse = {"difference": -0.1, "interval": [-0.15, -0.05], "num_samples": 50}
    change(run.evaluation_path, tasks={"sums": {"paired": {"accuracy": {"quantized - uniform": worse}}}})
    assert "accuracy on sums by 0.1000" in checks(run)["Other metrics"].sentence


def test_prediction_against_what_refinement_expected(run: RunDir):
    change(run.solution_path, expected_loss=0.02, expected_interval=[0.015, 0.025])
    assert checks(run)["Prediction holds"].state == "passes"
    change(run.solution_path, expected_interval=[0.1, 0.2])
    found = checks(run)["Prediction holds"]
    assert found.state == "take care" and "lies outside" in found.sentence


def test_prediction_without_refinement_is_a_ratio(run: RunDir):
    increase = read_findings(run).increase
    for factor, state in ((1.0, "passes"), (1.5, "take care"), (0.5, "take care")):
        kl = {**read_json(run.evaluation_path, "")["kl"], "quantized": factor * increase}
        change(run.evaluation_path, kl=kl)
        found = checks(run)["Prediction holds"]
        assert found.state == state and f"{factor:.2f} times" in found.sentence
        assert f"`hpcmpq refine {run.path}`" in found.sentence


@pytest.mark.parametrize(
    ("gap", "state"), [(0.0, "passes"), (0.008, "passes"), (0.03, "take care"), (None, "open")]
)
def test_gap(run: RunDir, gap: float | None, state: str):
    change(run.solution_path, gap=gap)
    assert checks(run)["Nothing better missed"].state == state


def test_a_bound_on_another_objective_is_not_called_one_on_the_predicted_loss(run: RunDir):
    solution = read_json(run.solution_path, "")
    assert read_findings(run).interactions_measured and "lower predicted loss" in sentence_of_proof(run)
    for changes, words in (
        ({"drop_cross_terms": True}, "the loss without interactions"),
        ({"robust_k": 2.0}, "the mean loss and 2 standard deviations over batches"),
    ):
        change(run.solution_path, solver=solution["solver"] | changes)
        findings = read_findings(run)
        assert f"less of {words}. That is what it minimised" in sentence_of_proof(run)
        assert ("Proven gap", "0 %", f"to the least of {words}") in summary_numbers(findings)
        assert dict(solver_facts(findings))["Lower bound"].endswith(f", on {words}")
        cross = {"predicted_cross_terms": -0.5 * solution["predicted_loss"]}
        assert proven_gap(read_json(run.solution_path, "") | cross) == f"proven gap 0 % of {words}"
    assert proven_gap(solution | {"gap": 0.0}) == "proven gap 0 %"


def sentence_of_proof(run: RunDir) -> str:
    change(run.solution_path, gap=0.0)
    return checks(run)["Nothing better missed"].sentence


def test_few_samples_ask_for_care(run: RunDir):
    assert checks(run)["Enough evaluation"].state == "passes"
    paired = read_json(run.evaluation_path, "")["paired"]
    paired["kl"]["quantized - original"] |= {"difference": 0.02, "interval": [0.01, 0.03]}
    change(run.evaluation_path, paired=paired)
    found = checks(run)["Enough evaluation"]
    assert found.state == "take care" and "± 50 %" in found.sentence
    assert found.sentence.endswith("; a larger evaluation.num_samples would make it firmer.")


def test_calibration_is_judged_by_its_batches(run: RunDir, tmp_path: Path):
    stderr = read_findings(run).predicted_stderr
    assert stderr is not None and 0 < stderr < read_findings(run).increase
    assert checks(run)["Enough calibration"].state == "passes"
    without = write_other_run(tmp_path / "one", NAMES, FORMATS, num_batches=0)
    assert read_findings(without).predicted_stderr is None
    assert "Enough calibration" not in checks(without)


def test_what_was_not_measured_is_open(tmp_path: Path):
    found = checks(write_other_run(tmp_path / "run", NAMES, FORMATS))
    assert {check.title for check in found.values() if check.state == "open"} == {
        "Budgets", "Better than uniform", "Prediction holds"
    }  # fmt: skip
    assert "hpcmpq evaluate" in found["Better than uniform"].sentence
    assert "Enough evaluation" not in found


def test_gap_of_a_refined_assignment_is_told_from_the_solver_s(run: RunDir):
    solution = read_json(run.solution_path, "")
    best = dict.fromkeys(solution["assignment"], "int4")
    loss = solution["uniform"]["int4"]["predicted_loss"]
    change(
        run.solution_path, refine={"solved_assignment": best, "evaluations": 3}, gap=0.4, bound=0.995 * loss
    )
    found = checks(run)["Nothing better missed"]
    assert found.state == "passes"
    assert "was within 0.5" in found.sentence and "this one is within 40 %" in found.sentence
    change(run.solution_path, bound=0.5 * loss)
    assert checks(run)["Nothing better missed"].state == "take care"
    change(run.solution_path, refine={"solved_assignment": solution["assignment"], "evaluations": 3})
    assert "solver.time_limit_s" in checks(run)["Nothing better missed"].sentence
