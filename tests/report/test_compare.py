"""`hpcmpq compare`: what is the same, what differs, and what cannot be compared."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hpcmpq.cli import app, console
from hpcmpq.errors import UserError
from hpcmpq.plan import plan_to_json
from hpcmpq.report.compare import compare
from hpcmpq.space import SearchSpace
from hpcmpq.store.json_files import write_json
from hpcmpq.store.run_dir import RunDir
from tests.report.other_runs import write_other_run
from tests.synthetic_run import (
    FORMATS,
    round_again,
    solution_values,
    synthetic_model,
    synthetic_plan,
    write_run,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunDir, RunDir]:
    """The same plan solved for 3 bits, and evaluated, and for 4."""
    first = write_run(tmp_path / "a", evaluated=True)
    second = write_run(tmp_path / "b")
    write_json(second.solution_path, solution_values(synthetic_plan(), synthetic_model(), 4.0))
    return first, second


def test_a_run_compared_with_itself_differs_in_nothing(runs: tuple[RunDir, RunDir]):
    found = compare(runs[0], runs[0])
    assert found["notes"] == []
    assert found["formats"] == {}
    assert all(a == b for key in ("budgets", "costs", "losses", "evaluation") for a, b in found[key].values())
    assert "kl of quantized" in found["evaluation"]


def test_two_budgets(runs: tuple[RunDir, RunDir]):
    found = compare(*runs)
    assert found["budgets"] == {"weight_bits": [3.0, 4.0]}
    assert found["costs"]["weight_bits"][0] <= 3.0 < found["costs"]["weight_bits"][1] <= 4.0
    assert found["losses"]["predicted_loss"][0] > found["losses"]["predicted_loss"][1]
    assignments = [json.loads(run.solution_path.read_text())["assignment"] for run in runs]
    differing = {group for group in assignments[0] if assignments[0][group] != assignments[1][group]}
    assert set(found["formats"]) == differing
    assert differing
    assert found["evaluation"]["kl of quantized"][1] is None
    assert len(found["notes"]) == 1
    assert f"hpcmpq evaluate {runs[1].path}" in found["notes"][0]


def test_an_evaluation_of_another_solution_is_left_out(runs: tuple[RunDir, RunDir]):
    runs[1].evaluation_path.write_bytes(runs[0].evaluation_path.read_bytes())
    assert compare(*runs)["evaluation"]["kl of quantized"][1] is None


def test_an_evaluation_of_the_codes_before_is_left_out(runs: tuple[RunDir, RunDir]):
    assert compare(*runs)["evaluation"]["kl of quantized"][0] is not None
    round_again(runs[0])
    assert not compare(*runs)["evaluation"]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"samples_hash": "other"}, "evaluated on different samples, 64 and 64: measured losses cannot be compared"),
        ({"num_samples": 32, "samples_hash": None}, "evaluated on different samples, 64 and 32"),
        ({"samples_hash": None}, "may have been evaluated on different samples"),
        ({}, None),
    ],
)  # fmt: skip
def test_evaluations_of_different_samples_are_told(tmp_path: Path, change: dict, note: str | None):
    runs = write_run(tmp_path / "a", evaluated=True), write_run(tmp_path / "b", evaluated=True)
    values = json.loads(runs[1].evaluation_path.read_text()) | change
    write_json(runs[1].evaluation_path, {name: value for name, value in values.items() if value is not None})
    found = compare(*runs)
    assert len(found["notes"]) == (note is not None) and (note or "") in "".join(found["notes"])
    if change == {"samples_hash": None}:
        assert f"`hpcmpq evaluate {runs[1].path}` does" in found["notes"][0]


def test_other_models_and_groups_are_named(runs: tuple[RunDir, RunDir]):
    plan = synthetic_plan()
    space = SearchSpace(plan.space.groups[1:], (FORMATS,) * (len(plan.space.groups) - 1))
    other = dataclasses.replace(
        plan, space=space, facts={**plan.facts, "model.weights": "other"}, fingerprint="other"
    )
    write_json(runs[1].plan_path, plan_to_json(other))
    values = json.loads(runs[1].solution_path.read_text())
    del values["assignment"][plan.space.groups[0].name]
    write_json(runs[1].solution_path, {**values, "fingerprint": "other"})
    found = compare(*runs)
    text = " ".join(found["notes"])
    assert "different models" in text
    assert "27 are in both, 1 only in the first and 0 only in the second" in text
    assert plan.space.groups[0].name not in found["formats"]
    assert found["num_shared_groups"] == 27


def test_unsolved_run_says_what_to_do(runs: tuple[RunDir, RunDir], tmp_path: Path):
    with pytest.raises(UserError, match="hpcmpq solve"):
        compare(runs[0], write_run(tmp_path / "c", solved=False))


def test_command_prints_tables_or_json(runs: tuple[RunDir, RunDir], monkeypatch: pytest.MonkeyPatch):
    # Of a width of its own, which one that an earlier test made may have taken from its environment.
    monkeypatch.setattr(console, "_out", Console(highlight=False, width=200))
    arguments = ["compare", *(str(run.path) for run in runs)]
    made = CliRunner().invoke(app, [*arguments, "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout) == compare(*runs)
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "weight_bits" in shown.output
    assert "of 28 groups" in shown.output
    assert "predicted loss" in shown.output and "part of it from interactions" in shown.output
    assert "_loss" not in shown.output and "_terms" not in shown.output


def test_command_says_where_no_format_differs(runs: tuple[RunDir, RunDir], tmp_path: Path):
    same = CliRunner().invoke(app, ["compare", str(runs[0].path), str(runs[0].path)])
    assert "all groups in both have the same format" in same.output
    other = write_other_run(tmp_path / "other", {"first": None}, FORMATS, budgets={"weight_bits": 5.0})
    none = CliRunner().invoke(app, ["compare", str(runs[0].path), str(other.path)])
    assert "no group is in both, so formats are not compared" in " ".join(none.output.split())
