"""Losses that a run keeps are those of the weights that its solution has."""

import logging
from pathlib import Path
from typing import Any

import pytest

from hpcmpq.store.json_files import read_json, write_json
from hpcmpq.store.measured_losses import is_evaluated_by, kept_codes, with_kept_loss
from hpcmpq.store.run_dir import RunDir
from hpcmpq.store.solution_file import read_solution
from tests.synthetic_run import round_again, write_run

REFINED = {
    "measured_loss": 0.5, "measured_loss_stderr": 0.02, "expected_loss": 0.5, "expected_interval": [0.4, 0.6],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = write_run(tmp_path / "run", evaluated=True)
    write_json(made.solution_path, {**read_json(made.solution_path, ""), **REFINED})
    return made


def test_losses_of_the_options_codes_give_way_to_those_of_kept_ones(run: RunDir):
    assert with_kept_loss(read_solution(run)) == read_solution(run)
    round_again(run)
    found = with_kept_loss(read_solution(run))
    assert (found["measured_loss"], found["measured_loss_stderr"]) == (0.25, 0.01)
    assert "expected_loss" not in found and "expected_interval" not in found


@pytest.mark.parametrize(
    ("codes", "rerounded", "same"),
    [
        ({}, False, True),
        ({}, True, True),  # of an earlier version, which did not say
        ({"codes": None}, False, True),
        ({"codes": None}, True, False),
        ({"codes": "c" * 16}, True, True),
        ({"codes": "c" * 16}, False, False),
    ],
)
def test_an_evaluation_is_of_the_assignment_and_of_the_codes(
    run: RunDir, codes: dict[str, Any], rerounded: bool, same: bool
):
    evaluation = {"assignment": read_solution(run)["assignment"], **codes}
    if rerounded:
        round_again(run)
    assert is_evaluated_by(evaluation, read_solution(run)) is same
    assert not is_evaluated_by({**evaluation, "assignment": {}}, read_solution(run))


def test_an_assignment_changed_by_hand_has_no_measured_loss(run: RunDir, caplog):
    round_again(run)
    values = read_json(run.solution_path, "")
    values["assignment"][next(iter(values["assignment"]))] = "int8"
    write_json(run.solution_path, {**values, "evaluated_loss": 0.5, "digest": "edited"})
    found = read_solution(run)
    assert not {*REFINED, "evaluated_loss"} & found.keys()
    with caplog.at_level(logging.WARNING):
        assert kept_codes(found) is None
    assert "rounded again for another assignment" in caplog.text
